"""How weights come to be: self-supervised pre-training, from a folder of images to a backbone file."""

from ssl_transfer import __version__ as __version__
