"""Fetching from and sending to a real Orthanc on loopback, through a proxy that misbehaves."""

import json
import logging
import socket
import subprocess
import threading
import time

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from faulty import FAULTS, Faulty
from services.orthanc import TITLE, Orthanc, free_port
from small_studies import CANARIES, write_labels, write_studies

import medtransfer as mt
from medtransfer.cli import cli
from medtransfer.errors import CohortError, PacsError, PacsRefused, PacsUnavailable, ReadError
from medtransfer.pacs import pace
from medtransfer.pacs.fetch import echo, fetch, fetch_scan, find
from medtransfer.pacs.send import missing_there, objects, send
from medtransfer.pacs.server import PASSWORD, TOKEN, USER, Server

STUDIES, SLICES = 3, 20
QUICK = ["reset", "truncate", "corrupt", "401"]
ALL = {"StudyDate": "20240101-20240131"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    write_labels(folder, STUDIES)
    return folder, write_studies(folder / "dicom", studies=STUDIES, slices=SLICES)


@pytest.fixture(scope="module")
def filled(orthanc, source):
    """The archive with three studies in it, put there by STOW-RS."""
    sent = send(Server(orthanc.web), objects(source[1]), progress=False)
    assert (sent.sent, sent.there, sent.confirmed) == (60, 0, True)
    return orthanc


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(pace, "FIRST_PAUSE_S", 0.02)


def same_as_source(folder, source):
    """How many fetched files hold the very data set that was put into the archive."""
    originals = {pydicom.dcmread(f).SOPInstanceUID: f for f in source}
    fetched = [pydicom.dcmread(p) for p in folder.rglob("*.dcm")]
    assert len({f.SOPInstanceUID for f in fetched}) == len(fetched)
    return sum(f == pydicom.dcmread(originals[f.SOPInstanceUID]) for f in fetched)


def names_nobody(text):
    return not [c for c in CANARIES if c.lower() in text.lower()]


@pytest.mark.parametrize("protocol", ["web", "dimse"])
def test_what_is_fetched_is_what_was_put_there_and_is_not_fetched_twice(
    protocol, filled, source, tmp_path, contacted, caplog
):
    caplog.set_level(logging.DEBUG)
    server = Server(getattr(filled, protocol))
    echo(server)
    found = find(server, ALL)
    assert (len(found), found.studies, found.bytes) == (60, 3, 60 * 18 * 14 * 2)
    assert [row["instances"] for row in found.rows()] == [20, 20, 20]
    first = fetch(server, found, tmp_path / "in", progress=False).check()
    assert (first.here, first.fetched) == (0, 60)
    assert same_as_source(tmp_path / "in", source[1]) == 60
    damaged = sorted((tmp_path / "in").rglob("*.dcm"))[:3]
    damaged[0].write_bytes(damaged[0].read_bytes()[:-7])
    raw = bytearray(damaged[1].read_bytes())
    raw[-5] ^= 1
    damaged[1].write_bytes(bytes(raw))
    damaged[2].unlink()
    again = fetch(server, found, tmp_path / "in", progress=False).check()
    assert (again.here, again.fetched) == (57, 3)
    assert same_as_source(tmp_path / "in", source[1]) == 60
    assert set(contacted) <= {(h, p) for h in ("127.0.0.1", "::1", "localhost") for p in (filled.http, filled.dicom)}
    assert contacted
    names = " ".join(str(p.relative_to(tmp_path)) for p in (tmp_path / "in").rglob("*"))
    assert names_nobody(names + caplog.text + repr(found) + repr(found.instances) + str(found.rows()) + str(first))
    assert (tmp_path / "in").stat().st_mode & 0o077 == 0
    assert all(p.stat().st_mode & 0o077 == 0 for p in (tmp_path / "in").rglob("*"))


@pytest.mark.parametrize("protocol", ["web", "dimse"])
def test_queries_find_by_every_level(protocol, filled):
    server = Server(getattr(filled, protocol))
    for query, expected in (
        ({"PatientID": "CANARYID0"}, 40),
        ({"PatientID": ["CANARYID1", "CANARYID0"], "StudyDate": "20240101"}, 20),
        ({"AccessionNumber": "CANARYACC2"}, 20),
        ({"PatientID": "CANARY*", "Modality": "CT"}, 60),
        ({"PatientID": "CANARYI?0"}, 40),
        ({"PatientID": "CANARY*", "Modality": "MR"}, 0),
        ({"StudyInstanceUID": f"{CANARIES[-1]}.1.1"}, 20),
        ({"SeriesInstanceUID": f"{CANARIES[-1]}.1.2"}, 20),
        ({"SOPInstanceUID": f"{CANARIES[-1]}.1.2.7"}, 1),
        ({"PatientID": "NOBODY"}, 0),
    ):
        assert len(find(server, query)) == expected, (list(query), expected)


def test_a_cohort_comes_from_the_archive(filled, source, tmp_path):
    cohort = mt.Cohort.from_dicomweb(
        filled.web, {"Modality": "CT", **ALL}, labels=source[0] / "labels.csv", choose="all", folder=tmp_path / "in",
        progress=False,
    )  # fmt: skip
    assert (len(cohort), cohort.classes, cohort.labels.tolist().count(0)) == (3, ("no", "yes"), 2)
    straight = mt.Cohort.from_dicom(source[0] / "dicom", labels=source[0] / "labels.csv", choose="all", progress=False)
    assert {(c.alias, c.patient_alias, c.label) for c in cohort} == {
        (c.alias, c.patient_alias, c.label) for c in straight
    }
    ours, theirs = ({c.alias: c.read() for c in x} for x in (cohort, straight))
    assert all(np.array_equal(ours[k].array, theirs[k].array) for k in theirs)
    (tmp_path / "one.csv").write_text("PatientID,label\nCANARYID1,yes\nNOBODY,no\n")
    found = fetch_scan(Server(filled.web), None, labels=tmp_path / "one.csv", on="PatientID", progress=False)
    assert [r.n_files for r in found] == [20]  # only who stands in the table is asked for, and fetched
    found = fetch_scan(Server(filled.web), ALL, labels=tmp_path / "one.csv", on="PatientID", progress=False)
    assert [r.n_files for r in found] == [20]
    (tmp_path / "none.csv").write_text("PatientID,label\nNOBODY,no\n")
    with pytest.raises(PacsError, match="nothing that fits"):
        fetch_scan(Server(filled.web), None, labels=tmp_path / "none.csv", on="PatientID", progress=False)


def test_a_config_trains_from_the_archive_and_hides_its_address(filled, source, tmp_path):
    from medtransfer.config import Experiment
    from medtransfer.pipeline import load_cohort

    text = f"""
data: {source[0]}
cohort: {{dicomweb: "{filled.web}", query: {{Modality: CT, PatientID: CANARYID*}}, labels: labels.csv, choose: all}}
model: {{weights: random/resnet18}}
out: {tmp_path}
"""
    experiment = Experiment.from_text(text)
    assert len(load_cohort(experiment, progress=False)) == 3
    assert "CANARYID" not in experiment.resolved()
    assert str(filled.http) not in experiment.resolved()
    again = Experiment.from_text(experiment.resolved(private=True))
    assert again.resolved(private=True) == experiment.resolved(private=True)


@pytest.mark.parametrize("fault", QUICK + [pytest.param(f, marks=pytest.mark.slow) for f in FAULTS if f not in QUICK])
def test_each_fault_in_passing_is_overcome_or_named_and_nothing_is_lost(
    fault, filled, source, tmp_path, contacted, caplog
):
    caplog.set_level(logging.DEBUG)
    hits = iter([False] * 7 + [True] * 2)

    def plan(method, path):
        return fault if "/instances/" in path and next(hits, False) else ""

    with Faulty(filled.http, plan, stall_s=5) as proxy:
        server = Server(proxy.web, timeout_s=3)
        found = find(server, ALL)
        contacted.clear()
        for _ in range(2 if fault == "401" else 0):  # two workers may meet it at once
            if len(proxy.done) < 2:
                with pytest.raises(PacsRefused, match="of 60 instances are here and stay") as caught:
                    fetch(server, found, tmp_path / "in", progress=False)
                assert TOKEN in caught.value.fix
                assert names_nobody(f"{caught.value!r} {caught.value}")
        fetch(server, found, tmp_path / "in", progress=False).check()
        assert proxy.done == [fault] * 2
        assert set(contacted) == {("127.0.0.1", proxy.port)}
    assert same_as_source(tmp_path / "in", source[1]) == 60
    assert not list((tmp_path / "in").rglob("._*"))
    assert names_nobody(caplog.text)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("corrupt", "corrupt"),
        ("shorten", "truncated"),
        ("500", "busy or failing"),
        ("html", "something else"),
    ],
)
def test_an_instance_that_stays_damaged_is_named_and_the_rest_is_kept(fault, says, filled, source, tmp_path):
    with Faulty(filled.http, lambda _, path: fault if path.endswith(".0.2.5") else "") as proxy:
        server = Server(proxy.web, attempts=2)
        found = find(server, ALL)
        done = fetch(server, found, tmp_path / "in", progress=False)
        assert done.fetched == 59
        assert sum(done.failed.values()) == 1
        with pytest.raises(PacsError, match=f"1 of 60 instances.*{says}") as caught:
            done.check()
        assert names_nobody(str(caught.value))
        assert proxy.done == [fault] * 2
        options = {"labels": source[0] / "labels.csv", "choose": "all", "folder": tmp_path / "in", "progress": False}
        with pytest.raises(PacsError, match="1 of 60"):
            mt.Cohort.from_dicomweb(proxy.web, ALL, **options)
        try:  # a series that lacks a slice is for the scan to judge
            assert len(mt.Cohort.from_dicomweb(proxy.web, ALL, incomplete=True, **options)) == 2
        except CohortError as error:
            pytest.fail(f"the other series are whole: {error}")
    rest = fetch(Server(filled.web), found, tmp_path / "in", progress=False).check()
    assert (rest.here, rest.fetched) == (59, 1)


def test_an_archive_that_dies_in_the_middle_is_named_and_the_same_call_goes_on(source, tmp_path, orthanc):
    with Orthanc(tmp_path / "mortal") as mortal:
        send(Server(mortal.web), objects(source[1]), progress=False)
        count, lock = iter(range(10**6)), threading.Lock()

        def plan(method, path):
            with lock:
                if "/instances/" in path and next(count) == 25:
                    mortal.kill()
            return ""

        with Faulty(mortal.http, plan) as proxy:
            server = Server(proxy.web, timeout_s=5, attempts=2)
            found = find(server, ALL)
            with pytest.raises(PacsUnavailable) as caught:
                fetch(server, found, tmp_path / "in", progress=False)
            assert caught.value.exit_code == 75
            here = len(list((tmp_path / "in").rglob("*.dcm")))
            assert 15 <= here <= 30
            assert f"{here} of 60 instances are here and stay" in caught.value.fix
            mortal.start()
            rest = fetch(server, found, tmp_path / "in", progress=False).check()
        assert (rest.here, rest.fetched) == (here, 60 - here)
    assert same_as_source(tmp_path / "in", source[1]) == 60


@pytest.mark.slow
def test_dimse_from_an_archive_that_dies_in_the_middle(source, tmp_path, orthanc, monkeypatch):
    from medtransfer.pacs.shelf import Shelf

    with Orthanc(tmp_path / "mortal") as mortal:
        send(Server(mortal.web), objects(source[1]), progress=False)
        server = Server(mortal.dimse, timeout_s=3, attempts=2, workers=2)
        found = find(server, ALL)
        keep, count = Shelf.keep, iter(range(10**6))

        def keep_and_kill(self, one, content):
            if next(count) == 25:
                mortal.kill()
            return keep(self, one, content)

        monkeypatch.setattr(Shelf, "keep", keep_and_kill)
        with pytest.raises(PacsUnavailable, match="of 60 instances are here and stay"):
            fetch(server, found, tmp_path / "in", progress=False)
        here = len(list((tmp_path / "in").rglob("*.dcm")))
        assert 15 <= here < 60
        mortal.start()
        rest = fetch(server, found, tmp_path / "in", progress=False).check()
        assert (rest.here, rest.fetched) == (here, 60 - here)
    assert same_as_source(tmp_path / "in", source[1]) == 60


def test_ctrl_c_stops_all_workers_and_keeps_what_is_whole(filled, source, tmp_path, monkeypatch):
    from medtransfer.pacs import fetch as module

    found = find(Server(filled.web), ALL)
    slow = Server(filled.web, megabytes_per_s=0.001)

    def interrupt(left, return_when):
        time.sleep(0.5)
        raise KeyboardInterrupt

    began = time.monotonic()
    with monkeypatch.context() as patched:
        patched.setattr(module, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch(slow, found, tmp_path / "in", progress=False)
    assert time.monotonic() - began < 20  # all of it would take 5 times as long
    here = len(list((tmp_path / "in").rglob("*.dcm")))
    rest = fetch(Server(filled.web), found, tmp_path / "in", progress=False).check()
    assert (rest.here, rest.fetched) == (here, 60 - here)
    assert same_as_source(tmp_path / "in", source[1]) == 60


def test_no_more_bytes_a_second_than_allowed(filled, tmp_path):
    server = Server(filled.web, megabytes_per_s=0.05)
    found = find(server, {"PatientID": "CANARYID1"})
    began = time.monotonic()
    done = fetch(server, found, tmp_path / "in", progress=False).check()
    assert time.monotonic() - began >= done.bytes / 50_000 - 0.25


def test_a_drip_is_given_up(filled, tmp_path):
    with Faulty(filled.http, lambda _, path: "drip" if "/instances/" in path else "") as proxy:
        server = Server(proxy.web, timeout_s=2, attempts=1, workers=1)
        found = find(server, {"SOPInstanceUID": f"{CANARIES[-1]}.1.2.7"})
        done = fetch(server, found, tmp_path / "in", progress=False)
        assert "too slowly" in next(iter(done.failed))


def test_addresses_that_do_not_answer_rightly_are_named(filled, tmp_path):
    quick = {"attempts": 2, "timeout_s": 2}
    with pytest.raises(PacsUnavailable, match="cannot be reached"):
        echo(Server(f"http://127.0.0.1:{free_port()}/dicom-web", **quick))
    with pytest.raises(PacsUnavailable, match="cannot be reached"):
        echo(Server(f"dicom://{TITLE}@127.0.0.1:{free_port()}", **quick))
    with pytest.raises(PacsRefused, match="rejects the association"):
        echo(Server(f"dicom://WRONG@127.0.0.1:{filled.dicom}", **quick))
    with pytest.raises(PacsRefused, match="not the address of a DICOMweb service"):
        echo(Server(f"http://localhost:{filled.http}/elsewhere", **quick))
    for fault, says in (("redirect", "another address"), ("html", "not the address"), ("401", "credentials")):
        with Faulty(filled.http, lambda *_, fault=fault: fault) as proxy:
            with pytest.raises(PacsRefused, match=says):
                echo(Server(proxy.web, **quick))
            assert len(proxy.done) == 1
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        with pytest.raises(PacsUnavailable, match="does not answer"):
            echo(Server(f"http://127.0.0.1:{deaf.getsockname()[1]}/dicom-web", attempts=1, timeout_s=0.5))
        with pytest.raises(PacsUnavailable):
            echo(Server(f"dicom://{TITLE}@127.0.0.1:{deaf.getsockname()[1]}", attempts=1, timeout_s=0.5))


def test_an_archive_that_ignores_the_question_is_not_believed(filled, monkeypatch):
    from medtransfer.pacs.web import Web

    ask = Web.find
    monkeypatch.setattr(Web, "find", lambda self, level, keys: ask(self, level, {
        k: v for k, v in keys.items() if k != "PatientID"}))  # fmt: skip
    with pytest.raises(PacsError, match="another PatientID") as caught:
        find(Server(filled.web), {"PatientID": "CANARYID1"})
    assert names_nobody(str(caught.value))


def test_passwords_and_certificates(source, tmp_path, monkeypatch, orthanc, caplog):
    caplog.set_level(logging.DEBUG)
    pem = tmp_path / "server.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(tmp_path / "key.pem"),
         "-out", str(tmp_path / "cert.pem"), "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("openssl cannot make a certificate here")
    pem.write_bytes((tmp_path / "key.pem").read_bytes() + (tmp_path / "cert.pem").read_bytes())
    with (
        Orthanc(tmp_path / "private", user="anna", password="hunter2") as private,
        Faulty(private.http, lambda *_: "", certificate=pem) as proxy,
    ):
        untrusting = Server(proxy.web)
        with pytest.raises(PacsRefused, match="certificate"):
            echo(untrusting)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "cert.pem"))  # the environment does not decide it
        with pytest.raises(PacsRefused, match="certificate"):
            echo(untrusting)
        server = Server(proxy.web, ca_bundle=tmp_path / "cert.pem")
        with pytest.raises(PacsRefused, match="credentials"):
            echo(server)
        monkeypatch.setenv(USER, "anna")
        monkeypatch.setenv(PASSWORD, "wrong-hunter")
        with pytest.raises(PacsRefused, match="credentials") as caught:
            echo(server)
        assert "hunter" not in str(caught.value)
        monkeypatch.setenv(PASSWORD, "hunter2")
        sent = send(server, objects(source[1][:5]), progress=False)
        assert (sent.sent, sent.confirmed) == (5, True)
        done = fetch(server, find(server, ALL), tmp_path / "in", progress=False).check()
        assert done.fetched == 5
    assert "hunter2" not in caplog.text


def test_a_token_is_sent_as_a_bearer(filled, monkeypatch):
    heard = []

    class Listening(Faulty):
        def _ask(self, port, method, path, headers, body):
            heard.append(headers.get("Authorization"))
            return super()._ask(port, method, path, {"Accept": "application/dicom+json"}, body)

    monkeypatch.setenv(TOKEN, "t0ken")
    with Listening(filled.http, lambda *_: "") as proxy:
        echo(Server(proxy.web))
    assert heard == ["Bearer t0ken"]


@pytest.mark.parametrize("protocol", ["web", "dimse"])
def test_sending_looks_each_object_up_and_sends_none_twice(protocol, source, tmp_path, orthanc):
    with Orthanc(tmp_path / "fresh") as fresh:
        server = Server(getattr(fresh, protocol))
        files = objects([source[0] / "dicom"])
        assert len(missing_there(server, files)) == 60
        first = send(server, files[:20], progress=False)
        rest = send(server, files[:30], progress=False)
        assert (first.sent, rest.sent, rest.there, rest.confirmed) == (20, 10, 20, True)
        assert len(find(Server(fresh.web), ALL)) == 30


@pytest.mark.parametrize(
    "fault",
    ["lost", "401", *(pytest.param(f, marks=pytest.mark.slow) for f in ("refuse", "503", "500", "stall", "cut"))],
)
def test_sending_over_faults_loses_and_doubles_nothing(fault, source, tmp_path, orthanc, contacted, caplog):
    caplog.set_level(logging.DEBUG)
    with Orthanc(tmp_path / "fresh") as fresh:
        hits = iter([False, True, False, True])

        def plan(method, path):
            return fault if method == "POST" and next(hits, False) else ""

        with Faulty(fresh.http, plan, stall_s=5) as proxy:
            server, files = Server(proxy.web, timeout_s=3), objects(source[1][:6])
            contacted.clear()
            for _ in range(3):
                try:
                    sent = send(server, files, progress=False)
                    break
                except PacsRefused:
                    assert fault == "401"
            assert sent.confirmed
            assert set(contacted) == {("127.0.0.1", proxy.port)}
            assert proxy.done == [fault] * 2
        assert len(find(Server(fresh.web), ALL)) == 6
    assert names_nobody(caplog.text)


def test_a_storage_without_search_takes_objects_too(source, tmp_path, orthanc):
    import shutil

    if shutil.which("storescp") is None:
        pytest.skip("dcmtk is not installed (tests/services/install.sh)")
    (tmp_path / "in").mkdir()
    port = free_port()
    process = subprocess.Popen(["storescp", "-aet", "STORE", "-od", str(tmp_path / "in"), str(port)])
    try:
        server = Server(f"dicom://STORE@127.0.0.1:{port}")
        echo(server)
        sent = send(server, objects(source[1][:4]), progress=False)
        assert (sent.sent, sent.confirmed) == (4, False)
    finally:
        process.terminate()
        process.wait(10)
    received = [pydicom.dcmread(p, force=True) for p in (tmp_path / "in").iterdir()]
    assert {r.SOPInstanceUID for r in received} == {pydicom.dcmread(p).SOPInstanceUID for p in source[1][:4]}


def test_what_is_no_dicom_object_is_not_sent(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"x" * 300)
    for files, says in (
        ([tmp_path / "a.dcm"], "DICOM"),
        ([tmp_path / "none.dcm"], "no such"),
        ([tmp_path], "no DICOM"),
    ):
        with pytest.raises(ReadError, match=says):
            objects(files)


def call(*arguments):
    return CliRunner().invoke(cli, [*map(str, arguments)])


def test_the_commands_list_fetch_send_and_end_with_their_codes(filled, source, tmp_path, monkeypatch):
    import sys

    monkeypatch.setattr(sys, "argv", ["medtransfer"])
    query = ["--query", "Modality=CT", "--query", "StudyDate=20240101-20240131"]
    listed = call("fetch", filled.web, tmp_path / "in", *query, "--dry-run", "--json")
    assert listed.exit_code == 0, listed.output
    told = json.loads(listed.output)
    assert (told["instances"], told["here"], told["bytes"]) == (60, 0, 60 * 504)
    assert not (tmp_path / "in").exists()
    assert "60 instances of 3 studies" in call("fetch", filled.web, tmp_path / "in", *query, "--dry-run").output
    done = call("fetch", filled.web, tmp_path / "in", "--ids", source[0] / "labels.csv", "--json", "-q")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["fetched"] == 60
    again = call("fetch", filled.web, tmp_path / "in", *query, "-q")
    assert "60 were here, 0 fetched" in again.output
    sent = call("send", filled.dimse, source[0] / "dicom", "--dry-run", "--json")
    assert json.loads(sent.output) == {
        "server": f"127.0.0.1:{filled.dicom}", "objects": [], "bytes": 0, "there": 60}  # fmt: skip
    assert call("send", filled.web, source[0] / "dicom", "-q").exit_code == 0
    for arguments, code in (
        (("fetch", "nowhere", tmp_path / "in", *query), 2),
        (("fetch", filled.web, tmp_path / "in"), 2),
        (("fetch", filled.web, tmp_path / "in", "--query", "Modality"), 2),
        (("fetch", f"http://127.0.0.1:{free_port()}/x", tmp_path / "in", *query, "--attempts", "1"), 75),
        (("send", filled.web, tmp_path / "none"), 3),
    ):
        failed = call(*arguments)
        assert failed.exit_code == code, failed.output
        assert names_nobody(failed.output)
    outputs = listed.output + done.output + again.output + sent.output
    assert names_nobody(outputs)
