"""Few rows that a statement is given in arrays, in place of a temporary table that it reads.

Where a transaction has touched a temporary table, its commit truncates all those of the session that are
emptied on commit, with their TOAST tables and indexes: 2 to 3 ms, many times what a few rows take.
"""

from collections.abc import Mapping


def with_given(statement: str, table: str, columns: Mapping[str, str]) -> str:
    """The statement with rows that it is given as arrays, one of each column, in place of a table.

    Args:
        statement: reads `table`, does not write it, and has no parameters.
        table: the temporary table.
        columns: those that the rows have, each with its type.
    """
    arrays = ", ".join(f"${n}::{kind}[]" for n, kind in enumerate(columns.values(), 1))
    rows = f"select * from unnest({arrays}) as given ({', '.join(columns)})"  # noqa: S608 - names of ours
    return in_place(statement, table, rows)


def in_place(statement: str, table: str, query: str) -> str:
    """The statement with the rows of a query in place of a table."""
    first = f"with {table} as materialized (\n{query.strip().removesuffix(';')}\n)"
    rest = statement.strip()
    return f"{first},{rest[len('with') :]}" if rest.split(maxsplit=1)[0] == "with" else f"{first}\n{rest}"
