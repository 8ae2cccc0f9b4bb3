"""What a call asks and what it gets: arguments checked and prepared, the reference's convention, output, facade."""
