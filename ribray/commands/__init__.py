"""What a command does that is no stage of a run: its body, without the reading of arguments."""
