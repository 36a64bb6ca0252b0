"""The files that a benchmark's server takes. A server counts what is missing as wrong, or refuses the file after hours."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionkit.data.files import add_new, annotation_file, expecting, table
from fusionkit.errors import ConfigError
from fusionkit.files.atomic import write_text
from fusionkit.files.plain import read_json
from fusionkit.scoring.record_schema import RecordSchema, check_predictions
from fusionkit.scoring.records import Record, require_writable

LAYOUT = "published"


@dataclass(frozen=True)
class Submission:
    """A JSON list with one record for each ``id`` of the list ``table`` in a published file.

    ``file`` is the name that the server wants, with ``{split}`` and ``{method}``.
    """

    table: str
    id: str
    file: str

    def write(
        self,
        records: Sequence[Record],
        form: RecordSchema,
        predictions: Path,
        asked: Path,
        folder: Path,
        split: str | None,
        method: str,
    ) -> Path:
        """Write the records that were read from ``predictions``, in the order of the file ``asked``.

        Raises DataError unless each id has one record of the form; nothing is written then.
        """
        content = read_json(annotation_file(str(asked), ""))
        rows = table(content, self.table, asked, LAYOUT)
        with expecting(asked, LAYOUT):
            ids = [row[self.id] for row in rows]
            known: set[Any] = set()
            for each in ids:
                add_new(known, each, f"the {self.id}", asked)
        split = split or content.get("data_subtype")
        if not split:
            raise ConfigError(
                f"{asked} does not say which split it is; give its name as split=NAME, e.g. split=test2014"
            )
        for key, name in (("split", split), ("method", method)):
            if "/" in name:
                raise ConfigError(f"{key} is '{name}', but is a part of the file's name: leave out its slashes")
        check_predictions(
            records, [form], {form.key: ids}, predictions, "the server wants every one: predict the whole split"
        )
        by_id = {record[form.key]: record[form.value] for record in records}
        require_writable(folder, "output")
        path = folder / self.file.format(split=split, method=method)
        write_text(path, json.dumps([{form.key: key, form.value: by_id[key]} for key in ids]) + "\n")
        return path
