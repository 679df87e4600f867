"""Sentences in two languages: the French of an interface, and any TFDS set of translations."""

import gettext
import pathlib
import typing

import numpy as np

from common.downloads import Package, fetch, from_wheel
from common.tfds import check_sizes, find_builder, prepare, split_names

_CHECKSUMS = """
eb71613a1d3a56e639accbf153f1942b54304021359aabb2d58d2ca18a9d7be0  dask_labextension.mo
85b549d6113c5d23ec7b525b0ab01f22e9d3ecf83d8c17bde66b2fc0461db39a  jupyter_archive.mo
61f73f5a8cd8d6204f7f0123ff7a82aa34422ec678ff1ac9607bd227a032d17d  jupyter_collaboration.mo
4160a1eba4bfe32dca8b43b2ba91130bf66ac64bc0aef97865f93a58c47c7104  jupyter_resource_usage.mo
6dac9c31fb712d07e53835165a8c3e5de767d955191eae8fa5647469b489f852  jupyterlab.mo
907317987341c70aa99486bd3f71edc65ec06690f5cf0e653b7f400dabb452e2  jupyterlab_git.mo
66c04fb7864cbfa1680431cae2bdbad1b0aeb92b7d97680f1264f78143c56557  jupyterlab_lsp.mo
1b2c7ec97a4fd74f5c977bfec61a914e5e3e5257643d0e31c5d8be507b6b24ca  jupyterlab_recents.mo
9b4d13a1ec160be71a44d724d00e26a2b95306d85de418a00d150dd5b8666831  jupyterlab_search_replace.mo
3eb4227c99ddff3373075de84fe848ec55b27c9d2f9657a8b44e88f7af4d313f  jupyterlab_spreadsheet_editor.mo
dd22dc7eed1335fd31c80af40b85ab515e2a8f16fb9a32bac951e450e215f165  jupyterlab_tour.mo
74098e99831c5c632d649185fd793db8065834a4114c8533dda923e2bae39768  jupyterlab_widgets.mo
1c728c2c22ebf1e609c3c427b1410d35056760c933cbbf66b3f973d0b445c06e  jupytext.mo
ca91782ac9dd9ff1e06a88bb77a4bb2441085d3324651a3dd974934167d4162b  nbdime.mo
a766f77fa026315834284016eb3406fe5810e5ec94d45310e98f551ba574d354  notebook.mo
64cab3fc18383ca856ac9bdffbd2ab68ee87793c7b4423c02345a0932b3fb3ac  retrolab.mo
c3e567daa0d36e87ce0bc17c858b598d9d6f9d2a8d99e366e1e00486eef62f35  spellchecker.mo
"""


# The French of JupyterLab and its extensions, by their volunteers.
_FRENCH = Package(
    requirement="jupyterlab-language-pack-fr-FR==4.5.post3",
    checksums=dict(line.split()[::-1] for line in _CHECKSUMS.strip().splitlines()),
    read_file=from_wheel("jupyterlab_language_pack_fr_FR/locale/fr_FR/LC_MESSAGES"),
)


class Translations(typing.NamedTuple):
    """Sentences and their translations.

    Args:
        sources: List of strings.
        targets: List of as many strings.
    """

    sources: list
    targets: list


class TranslationData(typing.NamedTuple):
    """A translation task.

    Args:
        train: `Translations` to train on.
        validation: `Translations` to judge by.
    """

    train: Translations
    validation: Translations


def interface_strings(train_size, validation_size, seed):
    """Menu entries, settings and messages in English and French, each English string once.

    Args:
        train_size: Integer, how many to train on, or `None` for all the others.
        validation_size: Integer, how many to judge by.
        seed: Integer, which ones.

    Returns:
        A `TranslationData`.
    """
    folder = fetch(_FRENCH)
    pairs = {}
    for name in sorted(_FRENCH.checksums):
        for source, target in read_catalog(folder / name):
            pairs.setdefault(source, target)
    pairs = list(pairs.items())
    check_sizes(train_size or 1, validation_size, len(pairs))
    order = np.random.default_rng(seed).permutation(len(pairs))

    def translations(indices):
        sources, targets = zip(*(pairs[index] for index in indices))
        return Translations(list(sources), list(targets))

    return TranslationData(
        train=translations(order[validation_size:][:train_size]),
        validation=translations(order[:validation_size]),
    )


def read_catalog(path):
    """The strings of a gettext catalog and their translations, white space made single.

    Args:
        path: `pathlib.Path` of a `.mo` file.

    Returns:
        List of pairs of strings. Of a string with plural forms the singular.
    """
    with pathlib.Path(path).open("rb") as file:
        catalog = gettext.GNUTranslations(file)._catalog  # gettext has no public way to list it
    pairs = []
    for key, target in catalog.items():
        source, form = key if isinstance(key, tuple) else (key, 0)
        source = source.rpartition("\x04")[-1]  # the context that translators were given
        if source and target and form == 0:  # the header's source is empty
            pairs.append((" ".join(source.split()), " ".join(target.split())))
    return pairs


def tfds_translations(name, data_dir, train_size, validation_size):
    """The first sentences of a TFDS set of translations.

    Args:
        name: String, such as `"ted_hrlr_translate/pt_to_en"` or `"wmt16_translate/de-en"`.
        data_dir: String, the folder of prepared sets.
        train_size: Integer, how many to train on, or `None` for all there are.
        validation_size: Integer, how many others to judge by.

    Returns:
        A `TranslationData`.

    Raises:
        ValueError: If there is no such set, or it is of another kind or too small.
        UnavailableError: If the set is not prepared and there is no network.
    """
    import tensorflow_datasets as tfds

    builder = find_builder(name, data_dir)
    features = builder.info.features
    if not isinstance(features, tfds.features.Translation):
        raise ValueError(
            "Argument `dataset` must name a set of translations, such as "
            f"ted_hrlr_translate/pt_to_en. Received: dataset={name!r} with the features {features}"
        )
    prepare(name, builder)

    def translations(split):
        rows = list(tfds.as_numpy(builder.as_dataset(split=split)))
        source, target = (
            [row[language].decode("utf-8") for row in rows]
            for language in builder.info.supervised_keys
        )
        return Translations(source, target)

    train, validation = split_names(builder, train_size, validation_size)
    return TranslationData(translations(train), translations(validation))
