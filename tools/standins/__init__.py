"""How the shipped stand-in checkpoints were pretrained; `tools.pretrain_standins` is the command."""
