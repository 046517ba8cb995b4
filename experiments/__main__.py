from experiments import cli
from experiments.commands import COMMANDS

cli.main("experiments", COMMANDS)
