"""Sends every kind of packet (`send ADDRESS UDP-PORT TCP-PORT`), and reads captures by scapy (`check FILE ADDRESS...`)."""

import collections
import json
import socket
import sys

SO_NO_CHECK = 11
ICMP, TCP, UDP = 1, 6, 17
# Odd and even lengths, and some that leave as fragments.
DATAGRAMS = [1, 2, 63, 1000, 1001, 3000, 3001]
SEGMENTS = [1, 2, 63, 1001]


def send(address, udp_port, tcp_port):
    for without_checksum in [0, 1]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, without_checksum)
            datagrams.settimeout(5)
            datagrams.connect((address, udp_port))
            for length in DATAGRAMS:
                datagrams.send(b"u" * length)
                datagrams.recv(4096)
    with socket.create_connection((address, tcp_port), timeout=5) as connection:
        for length in SEGMENTS:
            connection.sendall(b"t" * length)
            connection.recv(4096)


def reassembled(packets):
    """Yields IPv4 packets: the header as a scapy packet, the whole payload, and whether it came in fragments."""
    waiting = {}
    for packet in packets:
        header, payload = packet, bytes(packet.payload)[: packet.len - packet.ihl * 4]
        if not (header.flags.MF or header.frag):
            yield header, payload, False
            continue
        name = (header.src, header.dst, header.proto, header.id)
        pieces = waiting.setdefault(name, {})
        pieces[header.frag * 8] = (header, payload)
        whole, last = b"", False
        while not last and len(whole) in pieces:
            piece, part = pieces[len(whole)]
            whole, last = whole + part, not piece.flags.MF
        if last:
            yield pieces[0][0], whole, True
            del waiting[name]
    if waiting:
        raise SystemExit(f"never whole: {list(waiting)}")


def check(file, addresses):
    from scapy.layers.inet import IP, in4_chksum
    from scapy.utils import PcapReader, checksum

    counts = {address: collections.Counter() for address in addresses}
    wrong = []

    def watched():
        for frame in PcapReader(file):
            if IP in frame and {frame[IP].src, frame[IP].dst} & set(addresses):
                packet = frame[IP]
                if checksum(bytes(packet)[: packet.ihl * 4]) != 0:
                    wrong.append("IPv4: " + packet.summary())
                yield packet

    for header, payload, is_fragmented in reassembled(watched()):
        kinds = {"fragmented"} if is_fragmented else set()
        if len(payload) % 2:
            kinds.add("odd")
        if header.proto == UDP and payload[6:8] == b"\0\0":
            kinds.add("udp without checksum")
            remainder = 0
        elif header.proto in (TCP, UDP):
            kinds.add("tcp" if header.proto == TCP else "udp")
            remainder = in4_chksum(header.proto, IP(src=header.src, dst=header.dst), payload)
        else:
            kinds.add("icmp" if header.proto == ICMP else "other")
            remainder = checksum(payload)
        if remainder != 0:
            wrong.append(header.summary())
        for address in {header.src, header.dst} & set(addresses):
            counts[address].update(kinds)
    print(json.dumps({"counts": counts, "wrong": wrong}))


if sys.argv[1] == "send":
    send(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
else:
    check(sys.argv[2], sys.argv[3:])
