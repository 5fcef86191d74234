"""Settings from the environment, and from files of secrets."""

import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from services.runtime.errors import ConfigurationError
from services.runtime.setting_values import PREFIX
from services.runtime.settings import ROTATING, SECRETS_DIR, Settings

_BROKERS = f"{PREFIX}KAFKA_BOOTSTRAP_SERVERS"
#: Stands for the brokers where nobody asks Kafka anything; no such name can be (RFC 2606).
_NO_BROKERS = "kafka.invalid:9092"
_DATABASE = f"{PREFIX}DATABASE_URL"
#: Stands for the database where there need be none.
_NO_DATABASE = "postgresql://database.invalid/none"


def load_settings(*, needs_kafka: bool = True, needs_database: bool = True, **overrides: Any) -> Settings:
    """Reads the environment, and the files of `STEPSTREAM_SECRETS_DIR`, where that is set.

    A secret may be a file there, named as its variable in lower case: `stepstream_kafka_password`, say. The
    environment goes before. The files of passwords are read anew for new connections, all others once.

    Args:
        needs_kafka: whether the brokers have to be set.
        needs_database: whether the database has to be set; `names_database` says whether it is.
        overrides: values that go before the environment.

    Raises:
        ConfigurationError: names each variable that is missing or wrong, and how it should look.
    """
    if wrong := sorted(name for name, value in os.environ.items() if _is_no_text(name, value)):
        raise ConfigurationError("\n".join(f"{name}: it holds bytes that are no UTF-8" for name in wrong))
    folder = os.environ.get(SECRETS_DIR)
    if folder and not Path(folder).is_dir():
        raise ConfigurationError(f"{SECRETS_DIR}: there is no folder {folder}")
    if not needs_kafka and not {_BROKERS, _BROKERS.lower()} & os.environ.keys():
        overrides = {"kafka_bootstrap_servers": _NO_BROKERS} | overrides
    if not needs_database and not _is_given(_DATABASE, folder):
        overrides = {"database_url": _NO_DATABASE} | overrides
    try:
        return Settings(_secrets_dir=folder or None, **(_rotating(folder) | overrides))
    except ValidationError as error:
        raise ConfigurationError("\n".join(map(_explain, error.errors(include_url=False)))) from None


def names_database(settings: Settings) -> bool:
    """Whether the settings name a database, where they need not."""
    return settings.dsn != _NO_DATABASE


def _is_given(variable: str, folder: str | None) -> bool:
    """Whether a variable is set, or is a file of the folder."""
    names = {variable, variable.lower()}
    files = {file.name for file in Path(folder).iterdir()} if folder else set()
    return bool(names & (os.environ.keys() | files))


def _is_no_text(name: str, value: str) -> bool:
    """Whether a variable is ours, and neither Kafka, PostgreSQL nor a log could be given its value."""
    return name.upper().startswith(PREFIX) and any("\ud800" <= c <= "\udfff" for c in value)


def _rotating(folder: str | None) -> dict[str, Any]:
    """The passwords that are files of a folder, by their files: so they are read anew."""
    found: dict[str, Any] = {}
    for file in Path(folder).iterdir() if folder else ():
        name = file.name.lower().removeprefix(PREFIX.lower())
        variable = PREFIX + name.upper()
        is_set = variable in os.environ or f"{variable}_FILE" in os.environ
        if name in ROTATING and file.name.lower() != name and not is_set:
            found |= {name: "", f"{name}_file": str(file)}
    return found


def _explain(problem: Any) -> str:
    text = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return str(text)  # of several variables, which it names
    field = str(problem["loc"][0])
    if problem["type"] == "missing":
        text = f"is not set. {Settings.model_fields[field].description}"
    return f"{PREFIX}{field.upper()}: {text}"
