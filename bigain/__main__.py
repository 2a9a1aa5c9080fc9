"""`python -m bigain`."""

from bigain.commands.main import program

if __name__ == "__main__":
    program()
