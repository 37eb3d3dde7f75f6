"""The command line: plain commands and the Trainer's, behind one entry point."""
