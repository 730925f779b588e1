#!/usr/bin/env python3
"""Writes the seeds of the pool's fuzz targets but images and page-stream below the directory given."""
import os
import struct
import sys

MAGIC = 0x4C4F4F50
TYPES = dict(hello=1, ok=2, error=3, get=16, data=17, put=18, drop=19, move=20, fork=21, space_free=22, begin=32, space=33, inherit=34,
             file=35, commit=36, abort=37, open=38, info=39, file_get=40, file_bytes=41, list=42, remove=43, status=44, create=48, instance=49, end=50,
             lease=51, locate=23, near=25, order_put=45, order_get=46, attach=52, note=54, scrub=60, find=62, repair=64)


def message(kind, payload=b"", obj=0, epoch=0, request=1, cls=0):
    return struct.pack("<IHBBQQQII", len(payload), TYPES[kind], 2, cls, request, obj, epoch, 0, 0) + payload  # the targets seal it


def text(value):
    return struct.pack("<H", len(value)) + value


def ranges(*pairs):
    return struct.pack("<II", len(pairs), 0) + b"".join(struct.pack("<QQ", *pair) for pair in pairs)


def page(byte):
    return bytes([byte]) * 4096


def digests(count):
    return bytes([1]) * 16 * count  # not the real ones: the pool's target computes them


def spaces(*rows):
    return b"".join(struct.pack("<QQQ", *row) for row in rows)


PACKED, SEVENS = 0x40, bytes.fromhex("1a0000009d85b6741f070100fffffffffffffffffffffffffffffff6500707070707")  # a page of sevens: length, check, LZ4
hello = message("hello", struct.pack("<IHHI", MAGIC, 2, 2, 1))
hello_all = message("hello", struct.pack("<IHHI", MAGIC, 2, 2, 19))
SEQUENCE = 1 << 62
name = struct.pack("<I", 0) + text(b"redis:prod")
info = struct.pack("<QQQQIIII", 1, 2, 3, 4096, 4, 2, 1, 1) + text(b"redis:prod") + struct.pack("<I", 2) + b"{}"
info += text(b"pstree.img") + struct.pack("<Q", 9) + text(b"mm-1.img") + struct.pack("<Q", 10) + spaces((1, 2, 3)) + spaces((1, 2, 3)) + text(b"web-1")

messages = {
    "hello": hello,
    "error": message("error", struct.pack("<I", 28) + text(b"full")),
    "get": message("get", ranges((5, 3), (100, 1)), 1 << 20),
    "data": message("data", struct.pack("<II", 2, 0) + struct.pack("<QIIQII", 5, 1, 0, 6, 90, 1) + digests(1) + page(7)),
    "data-packed": message("data", struct.pack("<II", 2, 0) + struct.pack("<QIIQII", 5, 1, 0, 6, 90, 1) + digests(1) + SEVENS, cls=PACKED | 1),
    "put-packed": message("put", ranges((5, 1)) + digests(1) + SEVENS, 1 << 20, cls=PACKED | 2),
    "data-damaged": message("data", struct.pack("<II", 2, 0) + struct.pack("<QIIQII", 5, 1, 2, 6, 90, 1)),
    "put": message("put", ranges((5, 1)) + digests(1) + page(9), 1 << 20),
    "drop": message("drop", ranges((0, 1 << 36)), 1 << 20),
    "move": message("move", struct.pack("<QQQ", 0, 512, 512), 1 << 20),
    "fork": message("fork", struct.pack("<Q", 2), 1),
    "begin": message("begin", name),
    "inherit": message("inherit", struct.pack("<Q", 2) + ranges((0, 600)), 1),
    "file": message("file", struct.pack("<QQ", 4, 0) + text(b"pstree.img") + b"tree", 1),
    "file-get": message("file_get", struct.pack("<QQ", 0, 4) + text(b"pstree.img"), 1),
    "info": message("info", info),
    "status": message("status", struct.pack("<11Q", *range(11))),
    "create": message("create", struct.pack("<I", 1) + text(b"redis:prod") + text(b"web-1")),
    "instance": message("instance", struct.pack("<II", 1, 0) + spaces((1, 2, 3))),
}

# Object 1 is the draft and then the snapshot, 2 the instance; the first space of each is number 1.
draft, instance = 1 << 20 | 1, 2 << 20 | 1
snapshot = (hello + message("begin", name) + message("space", struct.pack("<Q", 77), 1) +
            message("put", ranges((0, 2), (511, 2)) + digests(4) + page(1) + page(2) + page(0) + page(3), draft) +
            message("file", struct.pack("<QQ", 4, 0) + text(b"pstree.img") + b"tree", 1) + message("commit", b"{}", 1))
streams = {
    "snapshot": snapshot + message("open", struct.pack("<I", 1) + text(b"redis:prod")) + message("get", ranges((0, 1024)), draft) +
                message("file_get", struct.pack("<QQ", 0, 4) + text(b"pstree.img"), 1) + message("list", struct.pack("<I", 0) + text(b"")),
    "instance": snapshot + message("create", struct.pack("<I", 1) + text(b"redis:prod") + text(b"web-1")) +
                message("put", ranges((0, 1)) + digests(1) + page(8), instance, 1) + message("fork", struct.pack("<Q", instance + 1), instance, 1) +
                message("move", struct.pack("<QQQ", 0, 512, 600), instance, 1) + message("drop", ranges((0, 1 << 36)), instance, 1) +
                message("get", ranges((0, 700)), instance + 1, cls=1) + message("lease", b"", 2) +
                message("put", ranges((0, 1)) + digests(1) + page(8), instance, 1) + message("space_free", b"", instance + 1, 2) +
                message("status") + message("end", b"", 2, 2) + message("remove", name),
    "inherit": snapshot + message("begin", struct.pack("<I", 0) + text(b"next:a")) + message("space", struct.pack("<Q", 1), 2) +
               message("inherit", struct.pack("<Q", draft) + ranges((0, 512), (512, 512)), 2 << 20 | 1) + message("commit", b"", 2) +
               message("remove", name) + message("get", ranges((0, 1000)), 2 << 20 | 1),
    "abort": hello + message("begin", name) + message("space", struct.pack("<Q", 1), 1) + message("put", ranges((3, 1)) + digests(1) + page(1), draft) +
             message("abort", b"", 1) + message("get", ranges((3, 1)), draft),
    "packed": hello + message("begin", name) + message("space", struct.pack("<Q", 77), 1) +
              message("put", ranges((3, 1)) + digests(1) + SEVENS, draft, cls=PACKED | 2) + message("get", ranges((0, 9)), draft, cls=PACKED) +
              message("put", ranges((3, 1)) + digests(1) + SEVENS[:-1] + b"!", draft, cls=PACKED) + message("get", ranges((0, 9)), draft, cls=1) + message("get", ranges((0, 9)), draft, cls=0x20),
    "resume": hello_all + snapshot[len(hello):] + message("create", struct.pack("<I", 2) + text(b"redis:prod") + text(b"web-1")) +
              message("put", ranges((0, 1)) + digests(1) + page(8), instance, 1, SEQUENCE | 1) + message("note", b"who is in", 2, 1) +
              message("fork", struct.pack("<Q", 3), instance, 1, SEQUENCE | 2) + message("attach", struct.pack("<II", 1, 1) + b"i" * 16, 2, 1) +
              message("drop", ranges((0, 1)), instance, 1, SEQUENCE | 3) + message("attach", struct.pack("<II", 0, 0) + bytes(16), 2, 2) +
              message("drop", ranges((0, 1)), 2 << 20 | 3, 2, SEQUENCE | 3) + message("get", ranges((0, 1024)), instance, 2),
    "near": hello_all + snapshot[len(hello):] + message("near") + message("locate", ranges((0, 600)), draft),
    "order": snapshot + message("order_put", struct.pack("<IIQQQ", 1, 0, 77, 0, 9), 1) + message("order_get", b"", 1),
    "scrub": snapshot + message("scrub", struct.pack("<QII", 0, 64, 1)) + message("find", struct.pack("<II", 1, 0) + digests(1)) +
             message("repair", struct.pack("<Q", 1) + page(1)),
    "limited": message("hello", struct.pack("<IHHI", MAGIC, 2, 2, 1), request=1 << 61) + snapshot[len(hello):] +
               message("create", struct.pack("<I", 1) + text(b"redis:prod") + text(b"web-1")) + message("put", ranges((0, 20)) + digests(20) + page(8) * 20, instance, 1) +
               message("begin", struct.pack("<I", 0) + text(b"other:a")) + message("remove", name) + message("list", struct.pack("<I", 0) + text(b"")),
    "damaged-on-the-way": hello + message("status", request=1 << 60) + message("status"),
    "no-hello": message("status"),
    "nonsense": b"GET / HTTP/1.1\r\nHost: pool\r\n\r\n" + bytes(64),
    "too-long": hello + struct.pack("<IHBBQQQII", 9 << 20, 18, 2, 0, 1, 1, 0, 0, 0),
}


def manifest(body):
    return b"DPMANIF1" + bytes(8) + body


def run(pgno, pages, slot):
    return struct.pack("<QIQ", pgno, pages, slot)


head = struct.pack("<IIIQ", 1, 1, 2, 5) + text(b"redis:prod") + struct.pack("<I", 2) + b"{}" + text(b"pstree.img") + struct.pack("<Q", 4) + b"tree"
manifests = {
    "whole": manifest(head + struct.pack("<Q", 1) + run(0, 3, 1) + run(512, 1, 9) + run(0, 0, 0) + struct.pack("<Q", 2) + run(0, 0, 0)),
    "empty": manifest(struct.pack("<IIIQ", 1, 0, 0, 5) + text(b"a:b") + struct.pack("<I", 0)),
    "counts": manifest(struct.pack("<IIIQ", 1, 0xFFFFFFFF, 0xFFFFFFFF, 5) + text(b"a:b") + struct.pack("<I", 0)),
    "beyond": manifest(struct.pack("<IIIQ", 1, 0, 1, 5) + text(b"a:b") + struct.pack("<I", 0) + struct.pack("<Q", 1) + run((1 << 36) - 1, 2, 1)),
}
head2 = struct.pack("<I", 2) + head[4:]
manifests["digests"] = manifest(head2 + struct.pack("<Q", 1) + run(0, 3, 1) + digests(3) + run(512, 1, 9) +
                                digests(1) + run(0, 0, 0) + struct.pack("<Q", 2) + run(0, 0, 0))
endpoints = {
    "tcp": b"dp://pool.example:7400/team/redis:prod", "v6": b"dp://[fe80::1%eth0]:99/a", "unix": b"dp+unix:///run/pool.sock#redis:prod",
    "dir": b"dir:/var/lib/pool/#redis:prod", "file": b"file:/var/lib/pool.store#a", "listen": b"tcp://127.0.0.1:0",
    "dots": b"dp://h/a/../b", "port": b"dp://h:99999/a", "listen-hash": b"unix:///varl//#redis:prod",
}

# What a client is answered: which calls it makes, then the answers. Numbers of requests are made to fit.
features = message("hello", struct.pack("<IHHI", MAGIC, 2, 2, 7))
ok = message("ok")
clients = {
    "pages": bytes([0, 2, 4, 4, 4, 4, 4, 4]) + features + ok + message("data", struct.pack("<II", 1, 0) + struct.pack("<QII", 5, 1, 1)),
    "data": bytes([0, 4, 1, 4, 4, 4, 4, 4]) + features + messages["data"] + messages["data-packed"] + messages["error"],
    "open": bytes([0x85, 0x87, 0x80, 0x81, 0x82, 0x83, 0x84, 0x86]) + features + messages["info"] + messages["status"] + messages["instance"],
    "files": bytes([0x84] * 8) + features + message("file_bytes", b"tree") + message("file_bytes", b"tree"),
    "attach": bytes([0x88] * 8) + features + messages["error"] + ok,
}
rights = {
    "clone": b"psk:look clone\npsk:all read,write,admin\npsk:all clone web*\n",
    "rights": b"cn:web-* read team/* quota=4G\n# a comment\nuid:1000 read,write\npsk:ci none\nanonymous admin *\n",
    "keys": b"# keys\nci:" + b"00" * 16 + b"\nweb@host:" + b"ab" * 64 + b"\n",
}
export_head = struct.pack("<QQQ1400s", 2, 7, 1, b"dp://127.0.0.1:7400")
exports = {
    "whole": export_head + struct.pack("<qQQQ", 1, 1 << 20, 2, 1) + struct.pack("<QQQQ", 5, 3, 100, 1) + struct.pack("<QQ", 9, 77) +
             struct.pack("<qQQQ", 2, 1 << 20 | 1, 0, 0),
    "counts": export_head + struct.pack("<qQQQ", 1, 1, 1 << 60, 1 << 60),
}


def say(caller, words):
    return bytes([0x50 | caller, len(words)]) + words


def window(space, *pgnos):
    return bytes([0x10, space, len(pgnos)]) + b"".join(bytes([pgno - 64, 7]) for pgno in pgnos)


controls = {
    "checkpoint": say(0, b"freeze") + say(0, b"export") + say(0, b"thaw") + say(1, b"heat 18446744073709551615 0") + say(1, b"list 1 0"),
    "thaw-of-another": say(0, b"freeze") + say(1, b"freeze") + say(1, b"thaw") + say(0, b"export") + bytes([0x00]),
    "push": say(0, b"push-window") + window(1, 65, 66, 71, 72) + say(0, b"push") + bytes([0x20]) + say(0, b"push") + bytes([0x01, 0x21]),
    "push-refused": say(0, b"push-window") + window(1, 65) + bytes([0x31]) + say(0, b"push") + say(2, b"migrate 1000 1") + say(2, b"migrate-stop"),
}


def kept(kind, key, descriptors=1, text=b""):
    return bytes([descriptors << 4 | (4 + len(text) // 4)]) + kind + bytes(7) + struct.pack("<Q", key) + text


keepers = {
    "spaces": kept(b"u", 1) + kept(b"p", 1) + kept(b"s", 0) + kept(b"u", 1) + kept(b"r", 1, 0) + kept(b"t", 0, 0, b"why."),
    "wrong": kept(b"u", 1, 0) + kept(b"x", 1, 2) + bytes([0x12]) + b"u" + bytes(7) + bytes([0x1F]) + b"t",
}


def saved_ranges(*pairs):
    return bytes([len(pairs)]) + b"".join(struct.pack("<QQ", *pair) for pair in pairs) + b"\0"


def leaf(pgno, pattern):
    return struct.pack("<Q", pgno) + bytes(pattern) + bytes(8)


def logged(kind, count, space, pages, pgno, slot):
    return struct.pack("<BIQHQQ", kind, count, space, pages, pgno, slot)


nothing = saved_ranges() + saved_ranges()
recovers = {
    "tables": b"\1" + saved_ranges((64, 256)) + saved_ranges((0x10000, 0x20000)) + saved_ranges() + b"\3" + leaf(64, [1, 3, 11, 4, 2, 5, 0, 35]) +
              leaf((1 << 64) - 1, [0] * 8) + leaf(512, [3] * 8),
    "state-that-is-none": b"\1" + saved_ranges() + nothing + b"\1" + leaf(64, [7, 6] * 4),
    "twice": b"\1" + saved_ranges() + nothing + b"\2" + leaf(64, [3] * 8) + leaf(64, [3] * 8),
    "not-at-a-leaf": b"\1" + saved_ranges() + nothing + b"\2" + leaf(64, [3] * 8) + leaf(65, [3] * 8),
    "ranges-without-end": b"\1" + b"\0\x80" + struct.pack("<IIQQ", 0, 0, 1 << 40, 1) + nothing + b"\0",
    "log": b"\0\1" + struct.pack("<QQ", 5, 1) + logged(1, 2, 1, 0, 5, 0) + logged(2, 1, 1, 0, 5, 3) + logged(3, 0, 1, 4, 0, 0) + logged(5, 0, 1, 0, 0, 0),
    "log-of-too-many-pages": b"\0\0" + struct.pack("<QQ", 2, 1) + logged(1, 1 << 31, 1, 0, 5, 0),
    "log-without-end": b"\0\0" + struct.pack("<QQ", (1 << 64) - 1, 1),
}


def small(value):
    return bytes([value]) if value < 0xf0 else b"\xff" + struct.pack("<Q", value)


def change(kind, space, a, b, pages, number, sequence):
    return bytes([kind]) + b"".join(small(value) for value in (space, a, b, pages, number, sequence))


def mirrored(number, kind, sequences, waiting, pages=((5, 3),)):  # a change in a mirror's ring
    body = change(kind, 1, 64, 128, 70, 0, 0) + b"".join(small(value) for value in sequences) + small(len(pages)) + bytes([waiting, 1])
    return b"\0" + small(number) + body + b"".join(small(pgno) + small(count) for pgno, count in pages)


def mirror(members, answered, ahead, *records):
    return b"\0" + members + small(answered) + bytes([ahead, 9, len(records)]) + b"".join(records)


def member(number, body):
    return bytes([number << 2 | 1]) + body


both, one_out = b"\0\3\0\3", b"\0\3\0\2"
calls_made = bytes([0x80, 5, 1, 0] * 4 + [0] * 20)
mirrors = {
    "both-have-all": mirror(both, 2, 0, mirrored(1, 4, (1, 1, 0, 0), 0), mirrored(2, 1, (2, 2, 0, 0), 0)) + calls_made,
    "one-lacks-a-change": mirror(one_out, 1, 2, mirrored(1, 4, (1, 1, 0, 0), 0), mirrored(2, 2, (2, 0, 0, 0), 2), mirrored(3, 1, (0, 0, 0, 0), 0x80)) + calls_made,
    "one-is-out": mirror(both, 2, 0, mirrored(2, 4, (2, 0, 0, 0), 0), member(1, b"\0\2\0"), member(1, b"\1\2" + change(0, 1, 7, 0, 2, 1, 0) + change(2, 1, 3, 0, 0, 2, 0)),
                         member(1, b"\3\6\3" + bytes([7, 0, 9])), member(1, b"\2" + small(1) + small(4))) + calls_made,
    "one-was-catching-up": mirror(both, 2, 0, mirrored(2, 3, (2, 1, 0, 0), 2), member(1, b"\0\4\0"), member(1, b"\3\6\1\7")) + calls_made,
    "ranges-without-end": mirror(both, 1, 0, mirrored(1, 4, (1, 0, 0, 0), 2, ((1, (1 << 64) - 2),))),
    "numbers-without-end": mirror(both, 1, 0, mirrored((1 << 64) - 1, 4, (1, 0, 0, 0), 2)),
    "a-full-set": mirror(both, 1, 0, member(1, b"\3\1\x0c" + bytes(range(1, 13)))),
    "a-set-of-one-place": bytes.fromhex("000003000302010002010320000200050306030700090502010480050100800501008005010080050100000000ffffff0000010000000000000d"),
}
instance_text = b"""{"schema":"distriproc.instance/1","id":"redis-1a2b","name":"redis","snapshot":"redis:prod","pool":"dp://h:1","running":true,
"own_pid_namespace":true,"root":{"pid":1,"start_time":2},"init":{"pid":1,"start_time":2},"pager":{"pid":1,"start_time":2},
"supervisor":{"pid":1,"start_time":2},"created_unix_ns":1,"snapshot_pages":2,"budget_bytes":3,"restore_ns":4}"""
note_text = b"""{"schema":"distriproc.commit/1","id":"redis-1a2b","name":"redis","pool":"dp://h:1","lineage":"redis:prod","kind":"commit",
"series":"commits/redis-1a2b","snapshot":"commits/redis-1a2b/redis:prod.1","error":"","unix_ns":1,"bytes":2,"frozen_ns":3,"total_ns":4,
"count":5,"failures":0,"interval_ns":0}"""
meta_text = b"""{"pages":1,"commit":{"kind":"protect","series":"protected/redis-1a2b","instance":"redis-1a2b","name":"web","lineage":"redis:prod"}}"""
states = {"instance": instance_text, "note": note_text, "meta": meta_text, "deep": b"[" * 3000}

for directory, files in dict(message=messages, pool=streams, manifest=manifests, endpoint=endpoints, client=clients, rights=rights,
                             export=exports, control=controls, keeper=keepers, recover=recovers, state=states, mirror=mirrors).items():
    os.makedirs(os.path.join(sys.argv[1], directory), exist_ok=True)
    for file_name, content in files.items():
        with open(os.path.join(sys.argv[1], directory, file_name), "wb") as out:
            out.write(content)
