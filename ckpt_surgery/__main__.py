"""``python -m ckpt_surgery`` is ``ckpt``."""

from ckpt_surgery.cli.start import run

if __name__ == "__main__":
    run()
