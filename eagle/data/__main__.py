"""`python -m eagle.data`: see `preparation`."""

from eagle.data.preparation import main

if __name__ == "__main__":
    raise SystemExit(main())
