"""What a phase's own process hands over: signed messages and files, none of them trusted."""
