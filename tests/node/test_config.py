"""node.yaml: defaults, paths, and errors in one sentence."""

import pytest

from tests.node.world import settings, write_settings
from volseg.errors import ConfigError
from volseg.node.config import load_node_config


def load(folder, **changes):
    return load_node_config(write_settings(folder, settings(folder, ["hippocampus"], **changes)))


def test_the_defaults_are_safe(tmp_path):
    document = settings(tmp_path, ["hippocampus"])
    least = {key: document[key] for key in ("store", "peers", "archive", "rules")}
    config = load_node_config(write_settings(tmp_path, least))
    assert (config.ae_title, config.bind, config.port) == ("VOLSEG", "127.0.0.1", 11112)
    assert config.http_port is config.monitor_port is config.tls is None
    assert config.limits.free_disk == 2**30


def test_relative_paths_are_relative_to_the_folder_of_the_file(tmp_path):
    rules = [{"model": "own.safetensors", "to": ["stub"]}, {"model": "hippocampus", "to": ["stub"]}]
    config = load(tmp_path, store="data/store", rules=rules)
    assert config.store == tmp_path / "data" / "store"
    assert [rule.model for rule in config.rules] == [str(tmp_path / "own.safetensors"), "hippocampus"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rules": [{"model": "hippocampus", "to": ["preview"]}]}, "expected a DICOM format"),
        ({"rules": [{"model": "hippocampus", "to": ["dicom-seg", "dicom-seg:labelmap"]}]}, "of different files"),
        ({"compute": {"device": "banana"}}, "'compute.device': expected auto, cpu, cuda, cuda:N or mps"),
        ({"compute": {"precision": "fp8"}}, "'compute.precision'"),
        ({"compute": {"max_memory": "much"}}, "'compute.max_memory': expected bytes or a size such as 2G"),
        ({"prot": 1}, "unknown key 'prot'"),
        ({"port": 70000}, "'port': Input should be less than or equal to 65535, found 70000"),
        ({"ae_title": "A" * 17}, "'ae_title': expected 1 to 16 ASCII characters"),
        ({"ae_title": "A\\B"}, "'ae_title': expected 1 to 16 ASCII characters"),
        ({"bind": "everywhere"}, "'bind': expected an IP address of this machine"),
        ({"peers": []}, "'peers': Tuple should have at least 1 item"),
        ({"peers": [{"ae_title": "A", "address": "10.0.0.300"}]}, "'peers.0.address': expected an IP address or"),
        ({"archive": {}}, "'archive': expected dimse, dicomweb or both"),
        ({"archive": {"dicomweb": {"url": "http://u:p@host/"}}}, "expected a URL such as .*, without user or password"),
        ({"archive": {"dicomweb": {"url": "http://host", "user": "me"}}}, "expected user and password_file together"),
        ({"archive": {"dicomweb": {"url": "http://host"}, "send": "dimse"}}, "send is dimse, but there is no dimse"),
        ({"rules": [{"model": "m", "to": ["pdf"]}]}, "There is no output format 'pdf'"),
        ({"limits": {"free_disk": "much"}}, "'limits.free_disk': expected bytes or a size such as 2G"),
        ({"quiet_seconds": 0}, "'quiet_seconds': Input should be greater than 0"),
        ({"retry": {"attempts": 0}}, "'retry.attempts': Input should be greater than or equal to 1"),
        ({"tls": {"certificate": "c.pem", "key": "k.pem"}}, "names .*c.pem, which is not there"),
        (
            {"archive": {"dimse": {"ae_title": "A", "host": "h", "port": 1, "tls": True}}},
            "has archive.dimse.tls, but no tls",
        ),
    ],
)
def test_a_bad_value_is_one_sentence_that_names_it(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message) as raised:
        load(tmp_path, **changes)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("address", "title", "expected"),
    [
        ("10.1.2.3", "A", True), ("10.1.3.3", "A", False), ("10.1.2.3", "B", False), ("10.1.2.3", None, True),
        ("::ffff:10.1.2.3", "A", True), ("fd00::1", "B", True), ("fd00::2", "B", False),
    ],
)  # fmt: skip
def test_peers_are_listed_by_title_and_address(tmp_path, address, title, expected):
    peers = [{"ae_title": "A", "address": "10.1.2.0/24"}, {"ae_title": "B", "address": "fd00::1"}]
    assert load(tmp_path, peers=peers).may_send(address, title) is expected
