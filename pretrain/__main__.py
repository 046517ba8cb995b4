import sys

from experiments import cli
from pretrain.cli import Compare, Pretrain

if sys.argv[1:2] == ["compare"]:
    cli.main("pretrain compare", Compare, sys.argv[2:])
cli.main("pretrain", Pretrain)
