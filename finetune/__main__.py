from experiments import cli
from finetune.cli import COMMANDS

cli.main("finetune", COMMANDS)
