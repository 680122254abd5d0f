"""``python -m userfault``: the same as the command `userfault`."""

from userfault.cli import main

if __name__ == "__main__":
    main(prog_name="userfault")
