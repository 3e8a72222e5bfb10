"""Where the project lies, and the keys in its .env file."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def load_environment() -> None:
    """Read API keys from .env in the project, then in the current folder. Variables that are already set win."""
    import dotenv

    for folder in (ROOT, Path.cwd()):
        dotenv.load_dotenv(folder / ".env")
