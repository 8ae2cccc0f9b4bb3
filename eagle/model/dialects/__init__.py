"""Draft heads in and out of files, in the layouts of those who train them."""
