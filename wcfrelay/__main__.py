"""``python -m wcfrelay`` is the command line."""

from wcfrelay.cli import main

if __name__ == "__main__":
    main(prog_name="wcfrelay")
