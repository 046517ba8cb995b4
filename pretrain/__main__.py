from experiments import cli
from pretrain.cli import Pretrain

cli.main("pretrain", Pretrain)
