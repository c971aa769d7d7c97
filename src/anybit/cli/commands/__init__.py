"""One file per command; each holds a click command named `command` and imports what is slow only when it runs."""
