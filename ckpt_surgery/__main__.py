"""``python -m ckpt_surgery`` is ``ckpt``."""

from ckpt_surgery.cli.main import main

if __name__ == "__main__":
    main()
