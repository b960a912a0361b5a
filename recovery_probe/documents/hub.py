"""Datasets of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from recovery_probe.documents.reading import field_of
from recovery_probe.documents.source import Source, Text
from recovery_probe.errors import InputError
from recovery_probe.hub import quiet_hub


@dataclass
class Hub(Source):
    """`hf:NAME[:CONFIG][:FIELD]` through `datasets`, streamed, training split.

    With one part after the name, it is a configuration when the dataset has one of that name,
    and the field otherwise.
    """

    name = "hf"

    # the field that holds the text
    field: str = "text"

    def read(self, address: str) -> Iterator[Text]:
        import datasets

        dataset, *parts = address.split(":")
        field = self.field
        source = f"documents.source = 'hf:{address}'"
        if len(parts) > 2 or not dataset:
            raise InputError(f"{source}: expected hf:NAME[:CONFIG][:FIELD]")
        if dataset in datasets.packaged_modules._PACKAGED_DATASETS_MODULES:
            # It would read whatever lies in the working folder.
            raise InputError(
                f"{source}: a format of files, not a dataset; name the file or its folder"
            )
        try:
            with quiet_hub():
                config = parts[0] if parts else None
                if len(parts) == 1 and config not in datasets.get_dataset_config_names(dataset):
                    config = None
                if parts and (len(parts) == 2 or config is None):
                    field = parts[-1]
                rows = datasets.load_dataset(dataset, config, split="train", streaming=True)
            for number, row in enumerate(rows):
                yield Text(f"{dataset}:{number}", field_of(row, field, source))
        except InputError:
            raise
        except Exception as error:  # datasets raises a different type for each way of not finding
            reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
            raise InputError(f"{source}: not a dataset that can be had here: {reason}") from error
