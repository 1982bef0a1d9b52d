"""Threads that decode images at the same time."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from bifrons.apps.server import image_decoder
from bifrons.apps.server.image_decoder import ImageDecoder
from bifrons.janus.image_generation import decode_images
from bifrons.janus.pipeline import JanusPipeline


@pytest.mark.parametrize("together", [1, 8])
def test_threads_share_the_decoding_of_images(janus_mini, monkeypatch, together):
    pipe, batches = JanusPipeline.from_pretrained(janus_mini, "cpu"), []
    decoder = ImageDecoder(pipe.model)
    decoder._together = together
    codes = torch.randint(0, 64, (24, pipe.model.config.num_codes)).tolist()
    damaged = codes[5]

    def decode(model, codes_NT):
        batches.append(len(codes_NT))
        if damaged in codes_NT.tolist():
            raise ValueError("damaged")
        return decode_images(model, codes_NT)

    def result(one):
        try:
            return decoder.decode(one).tobytes()
        except ValueError as error:
            return str(error)

    monkeypatch.setattr(image_decoder, "decode_images", decode)
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(result, codes))
    expected = [image.tobytes() for image in decode_images(pipe.model, torch.tensor(codes))]
    failed = [index for index, found in enumerate(results) if found == "damaged"]
    assert 5 in failed
    assert len(failed) <= together
    assert sum(batches) == len(codes)
    assert max(batches) <= together
    for index, found in enumerate(results):
        assert index in failed or found == expected[index]
