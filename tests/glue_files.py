"""Raw files of GLUE where TFDS looks for what it downloaded, so that it needs no network."""

import json
import zipfile

from tensorflow_datasets.core.download import checksums, resource

MRPC = {
    "train": "https://dl.fbaipublicfiles.com/senteval/senteval_data/msr_paraphrase_train.txt",
    "test": "https://dl.fbaipublicfiles.com/senteval/senteval_data/msr_paraphrase_test.txt",
}
STSB = "https://dl.fbaipublicfiles.com/glue/data/STS-B.zip"


def write_mrpc(data_dir, train, validation):
    """Lists of a first sentence, a second one, and whether they say the same."""
    rows = [*train, *validation]
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    lines = [f"{int(same)}\t{n}\t{n}\t{one}\t{two}" for n, (one, two, same) in enumerate(rows)]
    _downloaded(data_dir, MRPC["train"]).write_text("\n".join([header, *lines]), encoding="utf-8")
    _downloaded(data_dir, MRPC["test"]).write_text(f"{header}\n1\t0\t0\tone\ttwo", encoding="utf-8")
    [ids] = [url for url in checksums.get_all_url_infos() if "mrpc_dev_ids" in url]
    numbers = range(len(train), len(rows))
    _downloaded(data_dir, ids).write_text("\n".join(f"{n}\t{n}" for n in numbers))


def write_stsb(data_dir, train, validation):
    """Lists of a first sentence, a second one, and a score from 0 to 5."""
    with zipfile.ZipFile(_downloaded(data_dir, STSB), "w") as archive:
        for name, rows in {"train": train, "dev": validation, "test": train[:1]}.items():
            lines = ["index\tsentence1\tsentence2\tscore"]
            lines += [f"{n}\t{one}\t{two}\t{score}" for n, (one, two, score) in enumerate(rows)]
            archive.writestr(f"STS-B/{name}.tsv", "\n".join(lines) + "\n")


def _downloaded(data_dir, url):
    """The path of a download, with the file beside it by which TFDS knows that it is whole."""
    folder = data_dir / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / resource.get_dl_fname(url, checksums.get_all_url_infos()[url].checksum)
    information = {"urls": [url], "dataset_names": ["glue"], "original_fname": path.name}
    path.with_suffix(f"{path.suffix}.INFO").write_text(json.dumps(information))
    return path
