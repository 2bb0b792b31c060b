"""`ddt serve` under load against offline batch generation: images a second, and how long a client waits.

pip install './apps[serve]'
python benchmarks/serving.py [clients=1,8,32] [rounds=3] [images=4] [minutes=0]

A small random model (LLaMA of 5.3 M weights, 64 ids of 8,192 codes; a decoder of one step at 64 px) draws with guidance
1.5. Offline it draws as many prompts at once as there are clients. Served, each client is a thread of another process
that asks for one PNG file after the other, `images` of them (but one alone for 8), and the server has 32 slots. Both
take turns, with one thread of torch. Printed are images a second by the clock and by CPU time of the server, HTTP and
PNG files included, each with its share of offline's (median of the rounds, the smallest and the largest), and the
seconds that clients waited: their median and 95th percentile. On a busy machine the clock also counts the clients and
the neighbours. Five minutes on two free cores.

With `minutes`, eight clients then ask so long for pictures, streams, edits and chat, and hang up early in a tenth of
their requests. Printed is the server's memory each half minute, and what is left in it when they have gone.
"""

import http.client
import json
import random
import resource
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import torch
from pairs import settings

PROMPTS = ["a red fox", "a small blue bell left of a kite", "two green kites on a white ground", "a fox"]
LIKE_SERVED = {"output": "image", "guidance_scale": 1.5, "temperature": 0.7}
SLOTS = 32


def small_pair():
    """A random language model and codec that belong together."""
    from ddt_decoder import DDTDecoder, DecoderConfig, FlowConfig
    from ddt_llm import MultimodalLM, TinyLlamaConfig, expand_vocabulary, tiny_llama, train_text_tokenizer
    from ddt_tokenizer import Codec, DDTTokenizer, EncoderConfig, TokenizerConfig, VectorConfig

    torch.manual_seed(0)
    quantizer = VectorConfig(codebook_size=8192)
    tokenizer = DDTTokenizer(TokenizerConfig(encoder=EncoderConfig(num_tokens=64), quantizer=quantizer))
    flow = FlowConfig(time_shift=8.0, full_noise_share=0.7)  # one step
    decoder = DDTDecoder(DecoderConfig(codebook_size=8192, schedule=(64,) + (0,) * 24, flow=flow))
    decoder.set_codebook(tokenizer.embed(torch.arange(8192)), tokenizer.fingerprint())
    words = train_text_tokenizer(PROMPTS, vocab_size=300)
    llama = tiny_llama(TinyLlamaConfig(width=256, depth=4, num_heads=4, max_positions=512), words)
    model, words = expand_vocabulary(llama, words, codebook_size=8192, num_tokens=64)
    return MultimodalLM(model.eval(), words, "instruction", tokenizer.fingerprint()), Codec(tokenizer, decoder)


def many(work, threads):
    """Do work(i) in threads; returns when all have."""
    started = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


def post(connection, path, body):
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return connection.getresponse()


def ask(address, clients, images):
    """Ask for images, as so many clients; prints the seconds that each took."""
    seconds: list[float] = []

    def client(number):
        connection = http.client.HTTPConnection(urlsplit(address).netloc)
        for i in range(images // clients):
            begin = time.perf_counter()
            response = post(connection, "/v1/images/generations", {"prompt": PROMPTS[(number + i) % 4], "seed": i})
            assert response.status == 200 and json.loads(response.read())["data"], response.status
            seconds.append(time.perf_counter() - begin)

    begin = time.perf_counter()
    many(client, clients)
    print(json.dumps([time.perf_counter() - begin, *seconds]))


def load(address, clients, minutes):
    """Ask for everything, as so many clients, and hang up now and then; prints how many requests ended how."""
    ends: dict[str, int] = {}
    stop = time.monotonic() + 60 * minutes
    data = json.loads(
        post(http.client.HTTPConnection(urlsplit(address).netloc), "/v1/images/generations", {"prompt": "a"}).read()
    )
    url = f"data:image/png;base64,{data['data'][0]['b64_json']}"
    asks = [
        ("/v1/images/generations", {"prompt": PROMPTS[1]}),
        ("/v1/images/generations", {"prompt": PROMPTS[0], "stream": True, "partial_images": 3}),
        ("/v1/images/generations", {"prompt": PROMPTS[2], "n": 2, "quality": "low", "size": "256x256"}),
        ("/v1/images/edits", {"prompt": PROMPTS[3], "image": url, "temperature": 1.0}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPTS[0]}], "stream": True}),
        ("/v1/tokenize", {"image": [url, url]}),
        ("/v1/images/generations", {"prompt": "", "n": 99}),  # refused
    ]

    def client(number):
        rng = random.Random(number)
        while time.monotonic() < stop:
            connection = http.client.HTTPConnection(urlsplit(address).netloc)
            for _ in range(rng.randrange(1, 20)):
                path, body = rng.choice(asks)
                if hangs_up := rng.random() < 0.1:
                    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
                    time.sleep(rng.random() / 2)
                else:
                    response = post(connection, path, body)
                    response.read()
                end = "hung up" if hangs_up else str(response.status)
                ends[end] = ends.get(end, 0) + 1
                if hangs_up:
                    break
            connection.close()

    many(client, clients)
    print(json.dumps(ends))


def memory():
    """Resident memory of this process, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def other(address, **words):
    """Be clients in a process of their own."""
    command = [sys.executable, __file__, f"address={address}", *(f"{name}={value}" for name, value in words.items())]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def compare(lm, codec, address, clients, images, rounds):
    from ddt_tokenizer.images import to_uint8

    shares, waited, rates = {"clock": [], "CPU": []}, [], []

    def offline():
        for first in range(0, images, clients):
            prompts = [PROMPTS[i % 4] for i in range(first, first + clients)]
            to_uint8(torch.cat([each.images for each in lm.generate_batch(prompts, codec, **LIKE_SERVED)]))

    for number in range(rounds + 1):
        begun, cpu = time.perf_counter(), time.process_time()
        offline()
        alone = images / (time.perf_counter() - begun), images / (time.process_time() - cpu)
        cpu = time.process_time()
        told, _ = other(address, clients=clients, images=images).communicate()
        total, *seconds = json.loads(told)
        served = images / total, images / (time.process_time() - cpu)
        if number:  # the first one warms up
            waited += seconds
            rates.append((*served, *alone))
            for share, theirs, ours in zip(shares.values(), served, alone, strict=True):
                share.append(theirs / ours)
    by_clock, by_cpu, alone_by_clock, alone_by_cpu = (statistics.median(column) for column in zip(*rates, strict=True))
    share = {name: f"{statistics.median(each):.2f} [{min(each):.2f}-{max(each):.2f}]" for name, each in shares.items()}
    waited.sort()
    print(
        f"{clients} clients: {by_clock:.1f} images/s, {share['clock']} of offline's {alone_by_clock:.1f}; "
        f"{by_cpu:.1f} an s of CPU, {share['CPU']} of offline's {alone_by_cpu:.1f}; "
        f"waited {statistics.median(waited):.2f} s, p95 {waited[int(0.95 * len(waited))]:.2f} s",
        flush=True,
    )


def endure(engine, address, minutes):
    clients, begun, shown = other(address, clients=8, minutes=minutes), time.monotonic(), 0.0
    while clients.poll() is None:
        time.sleep(1)
        if time.monotonic() - begun >= shown:
            done = f"{engine.images} images drawn, {engine.pending} answers pending"
            print(f"{shown / 60:.1f} min: {memory():.0f} MB, {done}", flush=True)
            shown += 30
    print(f"requests: {clients.stdout.read().strip()}")
    time.sleep(2)
    left = f"{engine.pending} answers, {len(engine.batch.rows)} slots taken, {len(engine.batch.waiting)} waiting"
    print(f"left: {left}, {threading.active_count()} threads, {memory():.0f} MB")


def main():
    chosen, _ = settings(clients="1,8,32", rounds=3, images=4, minutes=0.0, address="")
    if chosen["address"]:
        if chosen["minutes"]:
            return load(chosen["address"], int(chosen["clients"]), chosen["minutes"])
        return ask(chosen["address"], int(chosen["clients"]), chosen["images"])
    import uvicorn

    from ddt_apps.serve.app import build_app
    from ddt_apps.serve.engine import Engine

    torch.set_num_threads(1)
    lm, codec = small_pair()
    with Engine(lm, codec, SLOTS, 64) as engine:
        server = uvicorn.Server(uvicorn.Config(build_app(engine, "small"), port=0, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        address = "http://{}:{}".format(*server.servers[0].sockets[0].getsockname())
        for clients in map(int, filter(None, chosen["clients"].split(","))):
            compare(lm, codec, address, clients, max(8, chosen["images"] * clients), chosen["rounds"])
        if chosen["minutes"]:
            endure(engine, address, chosen["minutes"])
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    main()
