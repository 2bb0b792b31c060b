"""Pictures and text for models that read and draw: scenes with exact truth, folders of pictures, shards."""

from ddt_data.readers.layouts import open_reader
from ddt_data.readers.records import Record, Refused, Span
from ddt_data.sceneeval.judge import Judge, Seen
from ddt_data.sceneeval.prompts import Asked, Prompt, level_config, load_prompts, scene_for
from ddt_data.sceneeval.verdicts import Verdict, verdict
from ddt_data.scenes.captions import caption
from ddt_data.scenes.config import SceneConfig
from ddt_data.scenes.edits import EDIT_KINDS, Edit, make_edit
from ddt_data.scenes.nouns import BACKGROUNDS, COLOURS, NOUNS, STYLES
from ddt_data.scenes.questions import QUESTION_KINDS, Question, make_questions
from ddt_data.scenes.scene import Scene, SceneGenerator, SceneObject, place, relation, render
from ddt_data.scenes.splits import is_held_out
from ddt_data.scenes.sprites import load_sprites, sprite
from ddt_data.sets.prose import prose
from ddt_data.shards.block_writing import write_block
from ddt_data.shards.buckets import aspect_buckets, nearest_bucket, open_buckets, pack_buckets, split_by_shape
from ddt_data.shards.building import Plan, build
from ddt_data.shards.checking import Findings, check_folder
from ddt_data.shards.folder import ShardDataset, ShardWriter, open_shard
from ddt_data.shards.images import decode_image, encode_image
from ddt_data.shards.manifest import Manifest, Shard
from ddt_data.shards.mixture import Mixture, open_shards
from ddt_data.shards.notes import Made
from ddt_data.shards.pack import holds_texts, make_sample, pack_scenes, pack_text
from ddt_data.shards.pack_pictures import PackConfig, pack_folder, pack_records
from ddt_data.shards.pictures import image_shape, load_image
from ddt_data.shards.sheet import contact_sheet
from ddt_data.shards.stream import StepSampler

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "EDIT_KINDS",
    "NOUNS",
    "QUESTION_KINDS",
    "STYLES",
    "Asked",
    "Edit",
    "Findings",
    "Judge",
    "Made",
    "Manifest",
    "Mixture",
    "PackConfig",
    "Plan",
    "Prompt",
    "Question",
    "Record",
    "Refused",
    "Scene",
    "SceneConfig",
    "SceneGenerator",
    "SceneObject",
    "Seen",
    "Shard",
    "ShardDataset",
    "ShardWriter",
    "Span",
    "StepSampler",
    "Verdict",
    "aspect_buckets",
    "build",
    "caption",
    "check_folder",
    "contact_sheet",
    "decode_image",
    "encode_image",
    "holds_texts",
    "image_shape",
    "is_held_out",
    "level_config",
    "load_image",
    "load_prompts",
    "load_sprites",
    "make_edit",
    "make_questions",
    "make_sample",
    "nearest_bucket",
    "open_buckets",
    "open_reader",
    "open_shard",
    "open_shards",
    "pack_buckets",
    "pack_folder",
    "pack_records",
    "pack_scenes",
    "pack_text",
    "place",
    "prose",
    "relation",
    "render",
    "scene_for",
    "split_by_shape",
    "sprite",
    "verdict",
    "write_block",
]
