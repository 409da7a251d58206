"""`python -m paretune`, for torchrun and srun."""

from paretune.cli import main

if __name__ == "__main__":
    main()
