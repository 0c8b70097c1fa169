"""Image folders with captions, datasets that become such folders, and the procedural faces and landscapes of the demo.

May import numpy, Pillow and itself only, and within functions what Hugging Face's datasets come with; everything from
``training`` upwards may import it.
"""

from lordfast.data.dataset import materialise
from lordfast.data.faces import FaceAttributes, FaceIdentity, draw_face, draw_identity, face_caption
from lordfast.data.folder import ImageRecord, NoImagesError, list_images, load_images, output_names
from lordfast.data.grid import image_grid
from lordfast.data.hub import DatasetRequest
from lordfast.data.images import BadImageError, fit_image, load_image, load_layers, save_png
from lordfast.data.landscapes import LandscapeAttributes, Scene, draw_landscape, draw_scene, landscape_caption
from lordfast.data.procedural import DrawnSubject, ProceduralImage, make_faces, make_landscapes, write_folder

__all__ = [
    "BadImageError",
    "DatasetRequest",
    "DrawnSubject",
    "FaceAttributes",
    "FaceIdentity",
    "ImageRecord",
    "LandscapeAttributes",
    "NoImagesError",
    "ProceduralImage",
    "Scene",
    "draw_face",
    "draw_identity",
    "draw_landscape",
    "draw_scene",
    "face_caption",
    "fit_image",
    "image_grid",
    "landscape_caption",
    "list_images",
    "load_image",
    "load_images",
    "load_layers",
    "make_faces",
    "make_landscapes",
    "materialise",
    "output_names",
    "save_png",
    "write_folder",
]
