"""POST /v1/tokenize and /v1/detokenize: pictures to ids and back, whole or their coarsest."""

import time
from typing import Any

import torch
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from torch import Tensor

from ddt_apps.serve.answering import while_there
from ddt_apps.serve.asked import Detokenize, RequestError, Tokenize
from ddt_apps.serve.bodies import MAX_PICTURES, read_json, read_with_pictures, served
from ddt_apps.serve.engine import draw
from ddt_apps.serve.images import picture
from ddt_apps.serve.pictures import side_of


async def tokenize(request: Request) -> Response:
    """Write pictures as ids, index 0 the finest and the last one the coarsest."""
    asked, pictures = await read_with_pictures(request, Tokenize)
    engine = served(request).engine
    codec = engine.codec
    keep = min(asked.keep_tokens or codec.num_tokens, codec.num_tokens)
    ids = await while_there(request, engine.call(lambda: codec.encode(pictures)))
    return JSONResponse({"ids": ids[:, codec.num_tokens - keep :].tolist(), **codec.identity})


async def detokenize(request: Request) -> Response:
    """Draw pictures from ids; fewer than the model's are the coarsest."""
    asked = await read_json(request, Detokenize)
    engine = served(request).engine
    side, ids = (
        side_of(asked.size, engine.codec.image_size),
        _ids(asked, engine.codec.num_tokens, engine.codec.codebook_size),
    )
    images = await while_there(request, engine.call(lambda: draw(engine.codec, ids, asked.steps, asked.seed)))
    data = [await picture(image, side, asked) for image in images]
    sent: dict[str, Any] = {"size": f"{side}x{side}", "output_format": asked.output_format}
    return JSONResponse({"created": int(time.time()), "data": data, **sent})


def _ids(asked: Detokenize, num_tokens: int, codebook_size: int) -> Tensor:
    """Return the coarsest ids [N, n] that are to be drawn."""
    rows = asked.ids if asked.ids and isinstance(asked.ids[0], list) else [asked.ids]
    lengths = {len(row) if isinstance(row, list) else 0 for row in rows}
    if len(rows) > MAX_PICTURES or len(lengths) > 1 or not 1 <= max(lengths) <= num_tokens:
        raise RequestError(
            f"ids must be a list of 1 to {num_tokens} ids, or up to {MAX_PICTURES} such lists of one length", "ids"
        )
    for each in (each for row in rows for each in row):
        if type(each) is not int or not 0 <= each < codebook_size:
            raise RequestError(f"ids must be whole numbers from 0 to {codebook_size - 1}", "ids")
    return torch.tensor(rows)[:, -(asked.keep_tokens or num_tokens) :]
