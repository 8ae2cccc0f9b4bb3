"""Models for people to talk to: a session that knows its history, for the terminal and the web page."""
