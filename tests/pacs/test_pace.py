"""What needs no archive: pace, multipart, addresses, queries, credentials."""

import email
import logging
import random
import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medtransfer.errors import ConfigError, MissingPackage, PacsError, PacsUnavailable
from medtransfer.pacs.found import check_query
from medtransfer.pacs.multipart import boundary_of, only_part
from medtransfer.pacs.pace import Busy, Damaged, Pace, Stopped, hushed
from medtransfer.pacs.server import PASSWORD, TOKEN, USER, Server, credentials


class Clock:
    """Time that passes only by waiting."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@given(st.lists(st.integers(1, 500_000), min_size=1, max_size=60), st.floats(1e3, 1e7))
def test_no_stretch_of_time_passes_more_than_the_rate_and_one_burst(sizes, rate):
    clock = Clock()
    pace = Pace(rate, clock=clock)
    pace.rest = lambda seconds: setattr(clock, "now", clock.now + seconds)
    passed = []
    for size in sizes:
        pace.take(size)
        passed.append((clock.now, size))
    for i, (begin, _) in enumerate(passed):
        for j in range(i, len(passed)):
            total = sum(size for _, size in passed[i : j + 1])
            assert total <= rate * (passed[j][0] - begin + Pace.burst_s) * (1 + 1e-9) + passed[i][1] + 1e-6


def test_the_rate_is_used_in_full():
    clock = Clock()
    pace = Pace(1000.0, clock=clock)
    pace.rest = lambda seconds: setattr(clock, "now", clock.now + seconds)
    for _ in range(100):
        pace.take(100)
    assert clock.now == pytest.approx((100 * 100 - 250) / 1000)  # the burst was there at the beginning


def test_a_stop_wakes_whoever_waits():
    pace = Pace(1.0)
    pace.stop()
    began = time.monotonic()
    with pytest.raises(Stopped):
        pace.take(10**9)
    assert time.monotonic() - began < 1


def test_only_what_passes_is_tried_again_and_the_archive_sets_the_pause():
    pace, waits, calls = Pace(None), [], []
    pace.rest = waits.append

    def call(errors):
        def once():
            calls.append(1)
            if errors:
                raise errors.pop(0)
            return "here"

        return once

    busy = Busy("busy")
    busy.retry_after_s = 7.0
    assert pace.patiently(call([PacsUnavailable("gone"), busy, Damaged("cut")]), attempts=4) == "here"
    assert 0.25 <= waits[0] <= 0.5
    assert waits[1] == 7.0
    assert 1 <= waits[2] <= 2
    calls.clear()
    with pytest.raises(PacsError, match="no"):
        pace.patiently(call([PacsError("no")]), attempts=4)
    assert len(calls) == 1
    calls.clear()
    with pytest.raises(PacsUnavailable):
        pace.patiently(call([PacsUnavailable("gone") for _ in range(9)]), attempts=3)
    assert len(calls) == 3


def body_of(content, boundary, preamble, epilogue):
    head = b"Content-Type: application/dicom\r\nContent-Length: " + str(len(content)).encode()
    return (
        preamble + b"--" + boundary + b"\r\n" + head + b"\r\n\r\n" + content + b"\r\n--" + boundary + b"--" + epilogue
    )


@settings(deadline=None)
@given(
    st.binary(max_size=400), st.sampled_from([b"", b"\r\n", b"preamble\r\n"]),
    st.sampled_from([b"", b"\r\n", b"\r\nx"]), st.integers(0, 2**32),
)  # fmt: skip
def test_a_part_comes_whole_however_the_network_cuts_it(content, preamble, epilogue, seed):
    boundary = b"abc"
    content = content + b"\r\n--ab" + content  # nearly a delimiter
    if b"\r\n--abc" in content:
        return
    whole, rng = body_of(content, boundary, preamble, epilogue), random.Random(seed)
    chunks, at = [], 0
    while at < len(whole):
        step = rng.randint(1, 9)
        chunks.append(whole[at : at + step])
        at += step
    assert b"".join(only_part(chunks, boundary)) == content
    end = len(whole) - len(epilogue)
    for cut in rng.sample(range(end), min(end, 10)):  # whatever is missing is noticed
        with pytest.raises(Damaged):
            list(only_part([whole[:cut]], boundary))


def test_the_standard_library_reads_the_same_part():
    content = bytes(range(33, 127)) * 5
    whole = body_of(content, b"x y", b"\r\n", b"\r\n")
    kind = 'multipart/related; type="application/dicom"; boundary="x y"'
    message = email.message_from_bytes(b"MIME-Version: 1.0\r\nContent-Type: " + kind.encode() + b"\r\n\r\n" + whole)
    theirs = message.get_payload()[0].get_payload(decode=True)
    assert b"".join(only_part([whole], boundary_of(kind))) == theirs == content


def test_two_parts_are_refused():
    part = b"\r\n--x\r\nA: b\r\n\r\none"
    with pytest.raises(Damaged, match="several"):
        list(only_part([part + part + b"\r\n--x--"], b"x"))


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("pacs", "no address"),
        ("ftp://pacs/x", "no address"),
        ("https://", "no address"),
        ("https://pacs:99999/x", "no address"),
        ("https://anna:hunter2@pacs/dicom-web", "no credentials"),
        ("https://anna@pacs/dicom-web", "no credentials"),
        ("dicom://AET:hunter2@pacs:104", "no credentials"),
        ("https://pacs/dicom-web?token=hunter2", "neither"),
        ("dicom://pacs:104", "names title and port"),
        ("dicom://AET@pacs", "names title and port"),
        ("dicom://A_TITLE_THAT_IS_TOO_LONG@pacs:104", "names title and port"),
    ],
)
def test_addresses_that_are_none_are_refused_without_quoting_a_secret(address, says):
    with pytest.raises(ConfigError, match=says) as caught:
        Server(address)
    assert "hunter2" not in str(caught.value)
    assert "anna" not in str(caught.value)


def test_settings_out_of_range_are_refused(tmp_path):
    for change in ({"workers": 0}, {"timeout_s": 0}, {"attempts": 0}, {"megabytes_per_s": 0.0}, {"aet": ""},
                   {"ca_bundle": tmp_path / "none.pem"}):  # fmt: skip
        with pytest.raises(ConfigError):
            Server("https://localhost/dicom-web", **change)


def test_queries_are_refused_or_taken_apart_by_level():
    wrong = (({}, "everything"), ({"PatientId": "1"}, "did you mean 'PatientID'"), ({"PatientID": ""}, "no value"),
             ({"PatientID": ["1", ""]}, "no value"))  # fmt: skip
    for query, says in wrong:
        with pytest.raises(ConfigError, match=says):
            check_query(query)
    asked = check_query({"PatientID": ["1", "2"], "StudyDate": "2024", "Modality": ("CT", "MR"), "SOPClassUID": "1.2"})
    assert asked["STUDY"] == [{"PatientID": "1", "StudyDate": "2024"}, {"PatientID": "2", "StudyDate": "2024"}]
    assert asked["SERIES"] == [{"Modality": "CT"}, {"Modality": "MR"}]
    assert asked["IMAGE"] == [{"SOPClassUID": "1.2"}]


def test_credentials_come_from_the_environment_before_the_keyring(monkeypatch):
    server = Server("https://localhost:8443/dicom-web")
    assert credentials(server) is None
    monkeypatch.setenv(USER, "anna")
    with pytest.raises(ConfigError, match="belong together"):
        credentials(server)
    monkeypatch.setenv(PASSWORD, "hunter2")
    found = credentials(server)
    assert (found.user, found.secret, found.bearer) == ("anna", "hunter2", False)
    assert "hunter2" not in repr(found)
    monkeypatch.setenv(TOKEN, "t0ken")
    assert credentials(server).bearer


def test_credentials_come_from_the_keyring_of_that_server(monkeypatch):
    keyring = pytest.importorskip("keyring", reason="the package keyring is not installed")
    from keyring.backend import KeyringBackend
    from keyring.credentials import SimpleCredential
    from keyring.errors import KeyringError

    class Ring(KeyringBackend):
        priority = 1
        kept = {("medtransfer localhost:8443", "token"): "t0ken", ("medtransfer localhost:443", "anna"): "hunter2"}  # noqa: RUF012

        def get_password(self, service, username):
            return self.kept.get((service, username))

        def set_password(self, service, username, password):
            raise AssertionError("nothing is written")

        def get_credential(self, service, username):
            found = [(u, p) for (s, u), p in self.kept.items() if s == service]
            return SimpleCredential(*found[0]) if found else None

    class Locked(Ring):
        def get_password(self, service, username):
            raise KeyringError("locked")

    before = keyring.get_keyring()
    try:
        keyring.set_keyring(Ring())
        assert credentials(Server("https://localhost:8443/dicom-web")).secret == "t0ken"
        assert credentials(Server("https://localhost/dicom-web")).user == "anna"
        assert credentials(Server("https://localhost:1/dicom-web")) is None
        keyring.set_keyring(Locked())
        assert credentials(Server("https://localhost/dicom-web")) is None
    finally:
        keyring.set_keyring(before)


def test_what_the_libraries_log_and_warn_is_not_heard(caplog, recwarn, capsys):
    caplog.set_level(logging.DEBUG)
    with hushed():
        for name in ("dicomweb_client.web", "urllib3.connectionpool", "pynetdicom.assoc", "pydicom"):
            logging.getLogger(name).error("SECRET17")
        warnings.warn("SECRET17", UserWarning, stacklevel=1)
    assert "SECRET17" not in caplog.text + capsys.readouterr().err
    assert not [w for w in recwarn if "SECRET17" in str(w.message)]
    logging.getLogger("pynetdicom.assoc").error("heard again")
    assert "heard again" in caplog.text


@pytest.mark.parametrize("address", ["https://localhost/dicom-web", "dicom://A@localhost:104"])
def test_the_extra_is_named_where_it_is_missing(address, monkeypatch):
    import sys

    from medtransfer.pacs.fetch import echo

    for name in ("dicomweb_client", "pynetdicom"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackage, match=r"medtransfer\[dicomweb\]"):
        echo(Server(address))
