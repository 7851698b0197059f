import json
import os
import pickle
import shutil
import zipfile
from concurrent.futures import ProcessPoolExecutor
from datetime import date

import pyarrow as pa
import pytest

from batch_platform.core.models.card import REQUIRED, expiry
from batch_platform.core.models.predictor import load_predictor
from batch_platform.core.models.registry import Registry
from batch_platform.errors import (
    ModelError,
    ModelNotFoundError,
    ModelSuspendedError,
    SignatureError,
    StorageError,
)
from batch_platform_tests import tiny_models

SIGNATURE = tiny_models.TABULAR_CONFIG.signature("churned")


@pytest.fixture
def source(tmp_path):
    return tiny_models.tabular_model(tmp_path / "source")


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "root")


def _register(registry, source, name="m", **options):
    given = {"card": tiny_models.CARD, "by": "me", "why": "a test"} | options
    return registry.register(name, source, "torch", SIGNATURE, **given)


def _change(source, seed):
    return tiny_models.tabular_model(source, seed=seed)


def test_versions_are_numbered_and_what_was_registered_comes_back(registry, source):
    first = _register(registry, source, alias="champion")
    second = _register(registry, _change(source, 1))
    assert (first.version, second.version) == ("1", "2")
    assert first.path == registry.folder / "m" / "1" / "model"
    assert first.digest.startswith("sha256:")
    assert first.digest != second.digest
    found = registry.resolve("m", "champion")
    assert found == first
    assert (found.flavor, found.signature, found.card) == ("torch", SIGNATURE, tiny_models.CARD)
    assert registry.get("m", "2") == second
    (entry,) = registry.list()
    assert [version.version for version in entry.versions] == ["1", "2"]
    assert entry.aliases == {"champion": "1"}


def test_equal_content_keeps_its_version(registry, source):
    first = _register(registry, source)
    _register(registry, _change(source, 1))
    again = _register(registry, _change(source, 0), alias="champion")
    assert again == first
    assert (first.created, again.created) == (True, False)
    assert registry.resolve("m", "champion") == first
    assert registry.verify() == ()


def test_another_signature_is_another_version(registry, source):
    first = _register(registry, source)
    other = registry.register(
        "m", source, "torch", tiny_models.TABULAR_CONFIG.signature(), card=None, by="me", why="other class"
    )
    assert other.version == "2"
    assert other.digest != first.digest
    assert other.card is None


def _register_in_a_process(job):
    root, source = job
    registry = Registry(root)
    return registry.register("m", source, "torch", SIGNATURE, card=None, by="me", why="race").version


def test_racing_registrations_all_get_a_number_of_their_own(tmp_path):
    sources = [tiny_models.tabular_model(tmp_path / f"s{seed}", seed=seed) for seed in range(6)]
    with ProcessPoolExecutor(3) as pool:
        versions = list(pool.map(_register_in_a_process, [(tmp_path / "root", path) for path in sources * 2]))
    assert sorted(set(versions)) == [str(number) for number in range(1, 7)]
    assert versions[:6] == versions[6:]
    assert Registry(tmp_path / "root").verify() == ()


def test_a_foreign_folder_with_the_next_number_is_not_overwritten(registry, source):
    _register(registry, source)
    taken = registry.folder / "m" / "2"
    taken.mkdir()
    (taken / "theirs").touch()
    assert _register(registry, _change(source, 1)).version == "3"
    assert (taken / "theirs").exists()


def test_promotion_moves_an_alias_and_is_remembered(registry, source):
    _register(registry, source, alias="champion")
    _register(registry, _change(source, 1))
    registry.promote("m", "2", "champion", by="owner", why="better on the later days")
    registry.promote("m", "2", "champion", by="owner", why="again")
    assert registry.resolve("m", "champion").version == "2"
    history = [
        json.loads(path.read_bytes()) for path in sorted((registry.folder / "m" / "history").iterdir())
    ]
    promotions = [
        (entry["version"], entry["by"], entry["why"]) for entry in history if entry["event"] == "promoted"
    ]
    assert promotions == [("1", "me", "a test"), ("2", "owner", "better on the later days")]


def test_what_is_not_there_is_answered_with_what_is(registry, source):
    with pytest.raises(ModelNotFoundError, match=r"no model 'm'.*models: none.*models register m DIR"):
        registry.resolve("m", "champion")
    _register(registry, source, alias="challenger")
    with pytest.raises(ModelNotFoundError, match=r"challenger -> 1; versions: 1\).*models promote m VERSION"):
        registry.resolve("m", "champion")
    with pytest.raises(ModelNotFoundError, match="no version '7'; it has 1"):
        registry.promote("m", "7", "champion", "me", "why")


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "a\n", "ü", "x" * 200, "/etc"])
def test_names_that_lead_elsewhere_are_refused(registry, source, name):
    with pytest.raises(ModelError, match="is no model name"):
        _register(registry, source, name=name)
    with pytest.raises(ModelError, match="is no model name"):
        registry.get(name, "1")
    assert not registry.folder.exists()


def test_versions_and_aliases_are_no_paths(registry, source):
    _register(registry, source)
    with pytest.raises(ModelNotFoundError):
        registry.get("m", "../m/1")
    with pytest.raises(ModelError, match="is no alias"):
        registry.promote("m", "1", "a/b", "me", "why")


def test_who_and_why_are_asked_for(registry, source):
    with pytest.raises(ModelError, match="who does this and why"):
        _register(registry, source, by=" ")
    _register(registry, source)
    with pytest.raises(ModelError, match="who does this and why"):
        registry.promote("m", "1", "champion", "me", "")


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({}, "intended_use, training_data, metrics, owner, validator, expires"),
        *((tiny_models.CARD | {name: ""}, f"nothing about {name}") for name in REQUIRED),
        (tiny_models.CARD | {"metrics": "good"}, "names and numbers"),
        (tiny_models.CARD | {"metrics": {"auc": float("nan")}}, "JSON does not"),
        (tiny_models.CARD | {"expires": "soon"}, "no date"),
    ],
)
def test_a_card_that_says_too_little_is_refused(registry, source, card, message):
    with pytest.raises(ModelError, match=message):
        _register(registry, source, card=card)
    assert registry.list() == ()


def _pickle(folder):
    (folder / "notes.dat").write_bytes(pickle.dumps({"a": 1}, protocol=4))


def _torch_archive(folder):
    with zipfile.ZipFile(folder / "weights.dat", "w") as archive:
        archive.writestr("archive/data.pkl", b"x")


def _suffix(folder):
    (folder / "pytorch_model.bin").write_bytes(b"")


def _link(folder):
    (folder / "passwd").symlink_to("/etc/passwd")


def _linked_folder(folder):
    (folder / "etc").symlink_to("/etc")


def _fifo(folder):
    os.mkfifo(folder / "pipe")


def _remote_code(folder):
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": "x.py"}}')


def _cut_short(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])


def _not_a_number(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    name = max(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name].view(-1)[-1] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _header_only(folder):
    (folder / "model.safetensors").write_bytes((10**6).to_bytes(8, "little") + b"{}")


def _adapter(folder):
    (folder / "adapter_config.json").write_text("{}")


def _weights_elsewhere(folder):
    shutil.copy(folder / "model.safetensors", folder.parent / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _weights_of_a_pickle(folder):
    (folder / "weights.dat").write_bytes(b"")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "weights.dat"}}')


def _remote_model_code(folder):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "someone/repository--modeling.Model"}
    (folder / "config.json").write_text(json.dumps(config))


def _no_weights(folder):
    (folder / "model.safetensors").unlink()


def _bad_json(folder):
    (folder / "more.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_pickle, "notes.dat: may be a pickle"),
        (_torch_archive, "weights.dat: may be a pickle"),
        (_suffix, r"pytorch_model\.bin: may be a pickle.*safetensors"),
        (_link, "passwd: is a symbolic link"),
        (_linked_folder, "etc: is a symbolic link"),
        (_fifo, "pipe: is neither a file nor a folder"),
        (_remote_code, "tokenizer_config.json: auto_map"),
        (_remote_model_code, "config.json: auto_map"),
        (_weights_elsewhere, r"weight_map names '\.\./outside.safetensors'"),
        (_weights_of_a_pickle, r"weight_map names 'weights.dat'"),
        (_cut_short, "model.safetensors: is cut short"),
        (_header_only, "model.safetensors: is cut short"),
        (_not_a_number, r"model.safetensors: \S+ holds NaN"),
        (_adapter, "merge it"),
        (_no_weights, "no model.safetensors"),
        (_bad_json, "more.json: cannot be read as JSON"),
    ],
)
def test_files_that_cannot_be_trusted_are_refused_and_leave_nothing(registry, source, spoil, message):
    spoil(source)
    with pytest.raises(ModelError, match=message):
        _register(registry, source)
    assert list(registry.folder.rglob("*")) == []


def test_weights_whose_header_begins_like_a_pickle_are_none(registry, source):
    path = source / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + size], content[8 + size :]
    longer = next(length for length in (0x0480, 0x0580, 0x020480) if length >= size)
    path.write_bytes(longer.to_bytes(8, "little") + header.ljust(longer) + data)
    assert _register(registry, source).created
    pickled = pickle.dumps({"weights": [1.0]}, protocol=4)
    path.write_bytes(pickled)
    with pytest.raises(ModelError, match="no safetensors file"):
        _register(registry, source)


def test_a_folder_too_large_empty_or_absent_is_refused(tmp_path, source):
    with pytest.raises(ModelError, match="more than the 100"):
        _register(Registry(tmp_path / "root", max_bytes=100), source)
    registry = Registry(tmp_path / "root")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="is empty"):
        _register(registry, tmp_path / "empty")
    with pytest.raises(ModelError, match="is not a folder"):
        _register(registry, tmp_path / "absent")


def test_a_registry_that_cannot_be_written_is_a_storage_error(tmp_path, source):
    (tmp_path / "root").write_text("a file where the root should be")
    with pytest.raises(StorageError, match="cannot be written"):
        _register(Registry(tmp_path / "root"), source)


def test_files_and_signature_must_agree(registry, source):
    with pytest.raises(SignatureError, match="which the signature's inputs lack"):
        registry.register("m", source, "torch", tiny_models.TEXT_SIGNATURE, card=None, by="a", why="b")


def _golden(source, rows=40):
    predictor = load_predictor(source, "torch", SIGNATURE)
    table = tiny_models.tabular_rows(rows).drop_columns(["row_key"])
    prepared = predictor.prepare(table.combine_chunks().to_batches()[0])
    outputs = predictor.finish(predictor.forward(prepared, pa.array(range(rows)).to_numpy()))
    return table.append_column("label", outputs["label"]).append_column("scores", outputs["scores"])


def test_golden_rows_that_agree_are_kept(registry, source):
    golden = _golden(source)
    version = _register(registry, source, golden=golden)
    assert (version.path.parent / "golden.parquet").is_file()
    assert registry.verify() == ()


def test_golden_rows_of_another_model_are_refused(registry, source):
    golden = _golden(source)
    with pytest.raises(ModelError, match=r"golden values differ.*row \d+: label is stays, expected churned"):
        _register(registry, _change(source, 1), golden=golden)
    assert registry.list() == ()


def test_golden_rows_that_expect_nothing_are_refused(registry, source):
    golden = _golden(source)
    for useless in (golden.drop_columns(["label", "scores"]), golden.slice(0, 0)):
        with pytest.raises(ModelError, match="expect nothing"):
            _register(registry, source, golden=useless)
    with pytest.raises(SignatureError, match=r"'plan' .* is missing"):
        _register(registry, source, golden=golden.drop_columns(["plan"]))


def test_every_altered_byte_is_found(registry, source):
    version = _register(registry, source, golden=_golden(source), alias="champion")
    files = [path for path in version.path.parent.rglob("*") if path.is_file()]
    files += (registry.folder / "m" / "history").iterdir()
    assert len(files) == 8
    for path in files:
        content = path.read_bytes()
        for altered in (content + b"\n", content[:-1], bytes([content[0] ^ 1]) + content[1:], b""):
            path.write_bytes(altered)
            assert registry.verify(), f"{path.name} was altered unseen"
        path.unlink()
        assert registry.verify(), f"{path.name} was taken away unseen"
        path.write_bytes(content)
    assert registry.verify() == ()


def test_added_files_and_versions_are_found(registry, source):
    version = _register(registry, source)
    for path in (version.path / "new.json", version.path.parent / "new.json", registry.folder / "m" / "2"):
        path.write_text("{}")
        (problem,) = registry.verify()
        assert problem.file == str(path)
        path.unlink()
    shutil.rmtree(version.path.parent)
    assert "was altered" in registry.verify()[0].problem


def test_altered_files_are_not_loaded_and_named(registry, source):
    version = _register(registry, source, alias="champion")
    assert registry.open("m", "1") == version
    weights = version.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    with pytest.raises(ModelError, match=r"version 1: .*model\.safetensors was altered since"):
        registry.open("m", "1")
    weights.unlink()
    weights.symlink_to("/etc/passwd")
    with pytest.raises(ModelError, match=r"model\.safetensors was altered"):
        version.checked_folder()


def test_an_altered_signature_or_alias_is_not_resolved(registry, source):
    version = _register(registry, source, alias="champion")
    path = version.path.parent / "signature.json"
    content = path.read_text()
    path.write_text(content.replace('"churned"', '"stays"', 1))
    with pytest.raises(ModelError, match="was altered"):
        registry.resolve("m", "champion")
    path.write_text(content)
    _register(registry, _change(source, 1))
    promotion = registry.folder / "m" / "history" / "000002.json"
    value = json.loads(promotion.read_text())
    value["version"] = "2"
    promotion.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    with pytest.raises(ModelError, match=r"000002.json: was altered: it does not match its hash"):
        registry.resolve("m", "champion")


def test_a_killed_registration_does_not_count_until_it_is_repeated(registry, source, monkeypatch):
    from batch_platform.core.models.history import History

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(History, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            _register(registry, source)
    with pytest.raises(ModelNotFoundError):
        registry.get("m", "1")
    assert "was interrupted" in registry.verify()[0].problem
    assert _register(registry, _change(source, 1)).version == "2"
    assert _register(registry, _change(source, 0), alias="champion").version == "1"
    assert registry.verify() == ()


def test_the_number_of_a_deleted_version_is_not_given_again(registry, source):
    version = _register(registry, source)
    shutil.rmtree(version.path.parent)
    assert _register(registry, _change(source, 1)).version == "2"


def test_a_suspended_version_does_not_score_until_it_is_lifted(registry, source):
    version = _register(registry, source, alias="champion")
    suspended = registry.suspend("m", "1", by="risk", why="scores rose on 3 March")
    assert (suspended.suspended.by, suspended.suspended.why) == ("risk", "scores rose on 3 March")
    told = (
        r"m version 1 was suspended by risk at \d{4}-.*: scores rose on 3 March\. It does not score; promote"
    )
    for refused in (
        lambda: registry.resolve("m", "champion"),
        lambda: registry.open("m", "1"),
        lambda: registry.promote("m", "1", "champion", "me", "why"),
        lambda: registry.promote("m", "1", "challenger", "me", "why"),
        lambda: _register(registry, source, alias="champion"),
        suspended.checked_folder,
    ):
        with pytest.raises(ModelSuspendedError, match=told):
            refused()
    assert registry.pointed("m", "champion").suspended == suspended.suspended
    assert registry.list()[0].versions[0].suspended == suspended.suspended
    lifted = registry.lift("m", "1", by="risk", why="the sensor was broken, not the model")
    assert lifted == version == registry.resolve("m", "champion")
    assert lifted.checked_folder() == version.path
    assert registry.verify() == ()


def test_another_version_scores_while_one_is_suspended(registry, source):
    _register(registry, source, alias="champion")
    _register(registry, _change(source, 1))
    registry.suspend("m", "1", "risk", "why")
    registry.promote("m", "2", "champion", "me", "the other is suspended")
    assert registry.resolve("m", "champion").version == "2"


def test_suspending_twice_keeps_the_first_reason_and_lifting_twice_is_refused(registry, source):
    _register(registry, source)
    first = registry.suspend("m", "1", "ann", "first")
    assert registry.suspend("m", "1", "bob", "second") == first
    registry.lift("m", "1", "ann", "well again")
    with pytest.raises(ModelError, match="version 1 is not suspended"):
        registry.lift("m", "1", "ann", "well again")
    assert registry.suspend("m", "1", "bob", "second").suspended.by == "bob"
    with pytest.raises(ModelError, match="who does this and why"):
        registry.suspend("m", "1", "ann", " ")
    with pytest.raises(ModelNotFoundError, match="no version '7'"):
        registry.suspend("m", "7", "ann", "why")


def test_a_suspension_that_is_altered_or_taken_away_is_found(registry, source):
    _register(registry, source)
    registry.suspend("m", "1", "ann", "why")
    path = registry.folder / "m" / "history" / "000002.json"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"suspended", b"lifted"))
    assert "was altered" in registry.verify()[0].problem
    with pytest.raises(ModelError, match="was altered"):
        registry.get("m", "1")
    path.unlink()
    (problem,) = registry.verify()
    assert (problem.file, "was taken away" in problem.problem) == (str(path), True)
    # Nor can another entry take its place.
    registry.promote("m", "1", "champion", "mallory", "nobody will know")
    assert "exchanged" in registry.verify()[0].problem


def test_a_promoter_killed_before_the_seal_leaves_a_whole_history(registry, source):
    _register(registry, source, alias="champion")
    (registry.folder / "m" / "seals" / "000002.json").unlink()
    assert registry.verify() == ()
    registry.suspend("m", "1", "ann", "why")
    assert registry.verify() == ()


def test_an_expired_card_is_warned_of_and_scores(registry, source, caplog):
    _register(registry, source, card=tiny_models.CARD | {"expires": "2001-01-01"}, alias="champion")
    assert registry.resolve("m", "champion").version == "1"
    assert "model m version 1: the model card expired after 2001-01-01: team:tests has it" in caplog.text


def test_a_card_holds_on_its_last_day():
    card = tiny_models.CARD | {"expires": "2026-12-31"}
    assert expiry(card, date(2026, 12, 31)) is None
    assert "expired after 2026-12-31" in expiry(card, date(2027, 1, 1))
    assert expiry(None) is None
    assert expiry({"owner": "registered before cards had to expire"}) is None
