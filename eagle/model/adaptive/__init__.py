"""`total_token=-1`: trees chosen by the tokens per second they promise, from costs that were measured here."""
