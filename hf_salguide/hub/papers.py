"""BibTeX of the papers that the guidance methods are from."""

import re

# By arXiv id, which stands in the `paper` of each method.
ENTRIES = {
    "1703.03717": """\
@inproceedings{ross2017right,
  title         = {Right for the Right Reasons: Training Differentiable Models by Constraining their Explanations},
  author        = {Ross, Andrew Slavin and Hughes, Michael C. and Doshi-Velez, Finale},
  booktitle     = {Proceedings of the International Joint Conference on Artificial Intelligence (IJCAI)},
  year          = {2017},
  eprint        = {1703.03717},
  archivePrefix = {arXiv}
}""",
    "1904.07478": """\
@inproceedings{simpson2019gradmask,
  title         = {GradMask: Reduce Overfitting by Regularizing Saliency},
  author        = {Simpson, Becks and Dutil, Francis and Bengio, Yoshua and Cohen, Joseph Paul},
  booktitle     = {International Conference on Medical Imaging with Deep Learning (MIDL), extended abstracts},
  year          = {2019},
  eprint        = {1904.07478},
  archivePrefix = {arXiv}
}""",
    "1910.00199": """\
@inproceedings{viviano2021saliency,
  title         = {Saliency is a Possible Red Herring When Diagnosing Poor Generalization},
  author        = {Viviano, Joseph D. and Simpson, Becks and Dutil, Francis and Bengio, Yoshua and Cohen, Joseph Paul},
  booktitle     = {International Conference on Learning Representations (ICLR)},
  year          = {2021},
  eprint        = {1910.00199},
  archivePrefix = {arXiv}
}""",
    "2112.00686": """\
@inproceedings{boyd2023cyborg,
  title         = {CYBORG: Blending Human Saliency Into the Loss Improves
                   Deep Learning-Based Synthetic Face Detection},
  author        = {Boyd, Aidan and Tinsley, Patrick and Bowyer, Kevin and Czajka, Adam},
  booktitle     = {IEEE/CVF Winter Conference on Applications of Computer Vision (WACV)},
  year          = {2023},
  eprint        = {2112.00686},
  archivePrefix = {arXiv}
}""",
    "2303.00818": """\
@misc{piland2023focus,
  title         = {Improving Model's Focus Improves Performance of Deep Learning-Based Synthetic Face Detectors},
  author        = {Piland, Jacob and Czajka, Adam and Sweet, Christopher},
  year          = {2023},
  eprint        = {2303.00818},
  archivePrefix = {arXiv}
}""",
    "2303.11932": """\
@inproceedings{rao2023studying,
  title         = {Studying How to Efficiently and Effectively Guide Models with Explanations},
  author        = {Rao, Sukrut and B{\\"o}hle, Moritz and Parchami-Araghi, Amin and Schiele, Bernt},
  booktitle     = {Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
  year          = {2023},
  eprint        = {2303.11932},
  archivePrefix = {arXiv}
}""",
    "2507.17000": """\
@misc{piland2025divisive,
  title         = {Divisive Decisions: Improving Salience-Based Training for Generalization
                   in Binary Classification Tasks},
  author        = {Piland, Jacob and Sweet, Christopher and Czajka, Adam},
  year          = {2025},
  eprint        = {2507.17000},
  archivePrefix = {arXiv}
}""",
    "2511.12744": """\
@misc{crum2025sage,
  title         = {SAGE: Saliency-Guided Contrastive Embeddings},
  author        = {Crum, Colton R. and others},
  year          = {2025},
  eprint        = {2511.12744},
  archivePrefix = {arXiv}
}""",
}  # fmt: skip
_ARXIV = re.compile(r"\b(\d{4}\.\d{4,5})\b")


def citations(paper: str) -> list[str]:
    """
    BibTeX of what a method's `paper` names.

    Args:
        paper (`str`): authors, title, venue and arXiv id, of one paper or several.

    Returns:
        `list[str]`: an entry a paper with an arXiv id; one that is not known here is cited as `paper` puts it. Nothing
        where there is no arXiv id: the text alone does not say what of it is a title.
    """
    found = []
    for identifier in dict.fromkeys(_ARXIV.findall(paper)):
        part = next(part for part in paper.split(";") if identifier in part).strip()
        found.append(ENTRIES.get(identifier) or _as_told(identifier, part))
    return found


def _as_told(identifier: str, text: str) -> str:
    escaped = re.sub(r"([&%$#_{}])", r"\\\1", " ".join(text.split()))
    return (
        f"@misc{{arxiv{identifier.replace('.', '')},\n"
        f"  note          = {{{escaped}}},\n"
        f"  year          = {{20{identifier[:2]}}},\n"
        f"  eprint        = {{{identifier}}},\n"
        "  archivePrefix = {arXiv}\n}"
    )
