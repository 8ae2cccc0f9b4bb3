"""`eagle.train.main` by another name of the reference: deepspeed main_deepspeed.py --deepspeed_config FILE."""

from eagle.train.main import main

if __name__ == "__main__":
    raise SystemExit(main())
