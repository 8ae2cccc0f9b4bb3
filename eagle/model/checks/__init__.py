"""Is a tree verified exactly on this very model? Asked at load where the tests do not vouch for it, and by doctor."""
