"""What each kind of finding does to training, and what to do about it: one row of `ADVICE` each.

advice = ADVICE["blurred"]
advice.title, advice.effect, advice.remedy
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Advice:
    """What to know about a kind of finding.

    Args:
        title: A few words, for headings.
        effect: What it does to training, or to what the scores are worth.
        remedy: What to do about it.
    """

    title: str
    effect: str
    remedy: str


_LOST = "Left out: training and scores do without them."

ADVICE: dict[str, Advice] = {
    # Files that cannot be used.
    "empty_file": Advice(
        "Files of 0 bytes", _LOST, "Copy them again from where they came, or remove them."
    ),
    "truncated": Advice(
        "Pictures that end too early", _LOST, "Copy them again; a download was cut off."
    ),
    "unreadable": Advice(
        "Files that cannot be read", _LOST, "Check rights and content, or remove them."
    ),
    "unsupported_format": Advice(
        "Pictures of a kind that is not supported", _LOST, "Save them as JPEG or PNG."
    ),
    "too_large": Advice(
        "Pictures of too many pixels", _LOST, "Save them smaller; the network sees a small side."
    ),
    "missing_file": Advice(
        "Rows whose file does not exist",
        _LOST,
        "Mend the paths of the table; they count from its folder, or from data.root.",
    ),
    "not_text": Advice(
        "Files that are no text", _LOST, "Say how they are written with data.encoding."
    ),
    "not_a_picture": Advice(
        "Files that are no picture", "Ignored: nothing is lost.", "Nothing, or move them away."
    ),
    "not_a_text": Advice(
        "Files that are called no text", "Ignored: nothing is lost.", "Nothing, or rename to .txt."
    ),
    "not_wanted": Advice("Rows of no class of the task", "Left out by design.", "Nothing."),
    "split_not_read": Advice("Splits that are not read", "Left out by design.", "Nothing."),
    "split_by_beginning": Advice(
        "Splits known by the beginning of their names",
        "They are read as what their names begin with.",
        "Check that this is meant.",
    ),
    "link_loop": Advice(
        "Links that lead back to a folder above",
        "Not followed: their pictures are read once.",
        "Remove the links.",
    ),
    # How pictures are stored.
    "extension_mismatch": Advice(
        "Pictures called something else than they are",
        "None here: they are read as what they are. Other programs may fail.",
        "Rename them, or 'kft data clean --reencode FOLDER'.",
    ),
    "dark_floats": Advice(
        "Arrays of floats within 0..1",
        "They look almost black, since 0..255 is expected.",
        "Multiply them by 255.",
    ),
    "odd_mode": Advice(
        "Pictures stored otherwise than in RGB or grey",
        "They are converted: transparency over white, CMYK and palettes to RGB, 16 bits to 8.",
        "Look whether the conversion is right in 'kft data preview'.",
    ),
    "turned": Advice(
        "Pictures that EXIF turns",
        "None here: they are turned upright. Other programs may show them lying.",
        "Nothing.",
    ),
    "odd_shape": Advice(
        "Pictures of extreme proportions",
        "data.resize: squash distorts them, crop cuts most of them off.",
        "Crop them by hand, or set data.resize=pad.",
    ),
    "mixed_sizes": Advice(
        "Pictures of very different sizes",
        "What is sharp in one is a blur in another after resizing; it can give a class away.",
        "Check that size does not go with class.",
    ),
    "small_pictures": Advice(
        "Pictures smaller than the network's side",
        "They are enlarged: no detail is gained and computing is wasted.",
        "Set backbone.image_size near their size, or get larger ones.",
    ),
    # What pictures show.
    "blank": Advice(
        "Pictures of one colour",
        "They show nothing and teach the label of a colour.",
        "data.cleaning.blank=drop, or remove them.",
    ),
    "dark": Advice(
        "Very dark pictures",
        "Little is to be seen; a class with many of them is learned by its darkness.",
        "Look at them; leave out what a person cannot tell.",
    ),
    "bright": Advice(
        "Very bright pictures",
        "Little is to be seen; a class with many of them is learned by its brightness.",
        "Look at them; leave out what a person cannot tell.",
    ),
    "blurred": Advice(
        "Blurred pictures",
        "Edges that the pre-trained network looks for are missing.",
        "Look at them; keep them if photographs in use will be like that.",
    ),
    "grey_among_colour": Advice(
        "Grey pictures among coloured ones",
        "If they are mostly of one class, the network learns grey instead of the class.",
        "Check which classes they are of; backbone.channels=1 makes all grey.",
    ),
    "looks_give_away": Advice(
        "Looks that give the class away",
        "The network may learn how bright or large pictures are instead of what they show.",
        "Check that pictures in use will differ like that; else take pictures of all classes "
        "alike.",
    ),
    # Copies.
    "duplicates": Advice(
        "Examples with the same content",
        "They weigh several times in training. Splits that kft makes keep them on one side.",
        "data.cleaning.duplicates=first.",
    ),
    "near_duplicates": Advice(
        "Examples that are nearly the same",
        "They weigh several times in training, and scores are too good if a split divides them.",
        "data.split.keep_together=near, or data.cleaning.near_duplicates=first.",
    ),
    "conflicting_labels": Advice(
        "Same content, different labels",
        "No model can get both right; training is pulled to and fro and scores have a ceiling.",
        "Decide which label is right, or data.cleaning.conflicting_labels=drop.",
    ),
    "conflicting_rows": Advice(
        "Rows that give one picture several labels", _LOST, "Keep one row for each picture."
    ),
    "duplicate_row": Advice("Rows that repeat another", _LOST, "Remove them from the table."),
    # Leakage.
    "leaked_copies": Advice(
        "Copies on both sides of the splits",
        "The model has seen what it is scored on: scores are too good.",
        "data.leakage=drop leaves the copies in training out, with train.folds "
        "data.cleaning.duplicates=first does; data.leakage=warn trains anyway.",
    ),
    "trained_on": Advice(
        "Examples that the run was trained on",
        "The score is too good.",
        "Score on data that the run has not seen; its own test split is 'kft evaluate RUN'.",
    ),
    "leaked_near_copies": Advice(
        "Near copies on both sides of the splits",
        "The model has nearly seen what it is scored on: scores may be too good.",
        "data.split.keep_together=near for splits of kft's own; else move them to one side, or "
        "data.cleaning.near_duplicates=first.",
    ),
    "held_out_twice": Advice(
        "Copies in validation and test",
        "Early stopping and thresholds are chosen on part of what is scored in the end.",
        "data.cleaning.duplicates=first keeps the one in test.",
    ),
    "leaked_groups": Advice(
        "Groups on both sides of the splits",
        "Scores tell how well known groups are recognised, not new ones: they are too good.",
        "Divide by group, or data.leakage=drop or warn.",
    ),
    "no_group": Advice(
        "Rows without a group",
        "Each is a group of its own, and may be divided from what it belongs to.",
        "Fill in data.group_column, or let data.group_pattern match every name.",
    ),
    # What cleaning did.
    "removed": Advice(
        "Examples left out by data.cleaning", "Left out as the recipe says.", "Nothing."
    ),
    "mended_text": Advice(
        "Texts mended by data.cleaning.text",
        "They are read as mended; predictions mend theirs alike.",
        "Nothing.",
    ),
    "renamed_label": Advice(
        "Labels given another spelling", "Learned under the new name.", "Nothing."
    ),
    "filled_in": Advice(
        "Cells that were filled in",
        "What was filled in is learned as if it had been there.",
        "Leave them out with data.cleaning.missing_label=drop if there are many.",
    ),
    "no_time": Advice("Rows without a time", "They go to training.", "Fill in data.time_column."),
    # Labels and classes.
    "missing_label": Advice(
        "Examples without a label", _LOST, "Label them, or choose data.cleaning.missing_label."
    ),
    "bad_number": Advice("Labels that are no usable number", _LOST, "Mend them in the table."),
    "tags_misfit": Advice("Tags that do not fit their words", _LOST, "Give each word one tag."),
    "label_spaces": Advice(
        "Labels with spaces around them", "None here: they are removed.", "Nothing."
    ),
    "label_separator": Advice(
        "Another separator between labels?",
        "What is written as several classes may be learned as one.",
        "Set data.label_separator.",
    ),
    "label_spelling": Advice(
        "Class names that differ in spelling alone",
        "One class is learned as several: each has fewer examples, and they are confused.",
        "Mend them in the data; for one class per example data.cleaning.label_spelling=merge, or "
        "data.cleaning.rename_labels.",
    ),
    "label_typo": Advice(
        "Rare class names that nearly are common ones",
        "If it is a slip of the pen, one class is learned as two.",
        "Mend them in the data; for one class per example "
        "data.cleaning.rename_labels={wrong: right}.",
    ),
    "imbalance": Advice(
        "Classes of very different sizes",
        "The network prefers the large ones; accuracy hides it, macro F1 shows it.",
        "Look at recall per class; train.class_weight=balanced unless each word has a class; for "
        "one class per example data.sampling=balanced in its place.",
    ),
    "small_class": Advice(
        "Classes with few examples",
        "They are learned badly, and their scores are chance.",
        "Add examples, or join classes; for one class per example data.cleaning.fewest_per_class.",
    ),
    "empty_class": Advice(
        "Classes without a usable example",
        "They cannot be learned and are no class of the model.",
        "Add examples, or remove the folder.",
    ),
    "class_absent": Advice(
        "Classes that a split lacks",
        "The split's scores say nothing about them.",
        "data.split.stratify=true, larger shares, or more examples.",
    ),
    "untrained_class": Advice(
        "Classes that training lacks",
        "They are never predicted.",
        "Put examples of them into training, or leave them out.",
    ),
    "one_class": Advice(
        "A single class",
        "There is nothing to be told apart: training is refused.",
        "Add examples of another class.",
    ),
    "class_everywhere": Advice(
        "Classes that every example has", "They cannot be learned.", "Leave them out."
    ),
    "label_shift": Advice(
        "Splits with different shares of classes",
        "Scores on one are not those to be expected of another.",
        "Divide anew with data.split.stratify=true, or look at scores per class.",
    ),
    "outlier": Advice(
        "Numbers far from all others",
        "Their errors are the largest, and pull all other predictions with them.",
        "Check each for a slip or another unit; else task.loss=huber or a logarithm of the number.",
    ),
    "constant_number": Advice(
        "Targets that never change",
        "There is nothing to be learned: training is refused.",
        "Leave them out of data.label_column.",
    ),
    "suspected_label": Advice(
        "Labels that look wrong",
        "Wrong labels in training cost accuracy; in validation and test they make scores lie.",
        "Look at each; data.cleaning.suspected_labels=drop or relabel for those in training.",
    ),
    # Texts.
    "empty_text": Advice(
        "Rows without a text", _LOST, "Fill them in, or choose data.cleaning.missing_text."
    ),
    "missing_values": Advice(
        "Cells without a value",
        "Columns that are read lose their rows; others do not matter.",
        "data.cleaning.missing_text and data.cleaning.missing_label say what happens.",
    ),
    "bad_unicode": Advice(
        "Halves of characters", "None: they are replaced by U+FFFD.", "Write the file anew."
    ),
    "replacement_characters": Advice(
        "Characters that were lost when the file was written",
        "Words with U+FFFD are unknown to the tokenizer.",
        "Get the texts from the source again, with the right encoding.",
    ),
    "mojibake": Advice(
        "Text that was decoded with a wrong encoding",
        "Words such as 'cafÃ©' are unknown to the tokenizer.",
        "data.encoding, or data.cleaning.text.mojibake=true.",
    ),
    "html": Advice(
        "Texts with HTML in them",
        "Tags take up tokens and can give the source, and so the label, away.",
        "data.cleaning.text.html=true.",
    ),
    "control_characters": Advice(
        "Texts with control or zero-width characters",
        "They split words into unknown ones.",
        "data.cleaning.text.control=true.",
    ),
    "not_nfc": Advice(
        "Texts in mixed Unicode forms",
        "One word is several to the tokenizer.",
        "data.cleaning.text.unicode=nfc.",
    ),
    "other_language": Advice(
        "Texts in another language than most",
        "A tokenizer of one language cuts them to pieces, and little is learned of them.",
        "Leave them out, or take a multilingual network.",
    ),
    "short_text": Advice(
        "Texts of one word or none",
        "There is little to learn a label from.",
        "Look at them; leave out what a person cannot tell.",
    ),
    "long_text": Advice(
        "Texts far longer than the others",
        "What does not fit the network is cut off.",
        "backbone.sequence_length, or data.truncation.",
    ),
    "huge_text": Advice(
        "Texts of a whole book",
        "Nearly all of such a text is cut off; often a quotation mark is missing, and the cell "
        "swallowed the rows after it.",
        "Look at the file there; leave the row out or mend the quotation marks.",
    ),
    "length_gives_away": Advice(
        "Classes of very different text lengths",
        "The network may learn the length instead of the content.",
        "Check that texts in use will differ like that.",
    ),
    "cut_text": Advice(
        "Texts that are cut",
        "What stands in the part that is cut off cannot be learned.",
        "backbone.sequence_length, or data.truncation.",
    ),
    # Against the pre-training, and between parts of the data.
    "resolution_mismatch": Advice(
        "Another resolution than the weights were trained at",
        "Features are of things at another scale.",
        "backbone.image_size nearer to the pictures' and the weights' own.",
    ),
    "colour_mismatch": Advice(
        "Other colours than the weights were trained on",
        "Features of colour are of no use; the first blocks fit badly.",
        "Unfreeze more blocks, at a low rate.",
    ),
    "aspect_mismatch": Advice(
        "Pictures that are squashed much",
        "Things have other proportions than those the weights know.",
        "data.resize=crop or pad, or backbone.image_size=[height, width].",
    ),
    "unknown_tokens": Advice(
        "Words that the tokenizer does not know",
        "What they say is lost before the network sees it.",
        "Another network (another language, cased, multilingual), or mend the texts.",
    ),
    "tokens_per_word": Advice(
        "Words that are cut into many tokens",
        "Texts are longer to the network than they need be, and their words new to it.",
        "A network that was pre-trained on such texts.",
    ),
    "transfer_gain": Advice(
        "The pre-trained features are of use",
        "Frozen features tell the classes apart: training begins from there.",
        "Nothing.",
    ),
    "low_transfer_gain": Advice(
        "The pre-trained features are of little use",
        "Frozen features tell the classes apart hardly better than random ones.",
        "Unfreeze deep, or choose weights that were trained on such data.",
    ),
    "easy_classes": Advice(
        "Classes that random features tell apart, too",
        "Little can be gained by pre-training or by unfreezing: the head does it.",
        "Nothing, or check in 'kft data check' that nothing gives the classes away.",
    ),
    "split_drift": Advice(
        "Splits that look different",
        "A classifier can tell them apart, so scores are not of what was trained on.",
        "Look at the most telling examples; divide anew at random, or accept it if it is meant.",
    ),
    "figure_drift": Advice(
        "Parts that differ in a simple figure",
        "Scores on one are not those to be expected of another.",
        "Find out where the difference comes from. Splits that are to be alike are divided anew at "
        "random.",
    ),
    # Data seen after training.
    "data_drift": Advice(
        "Data against those of the run",
        "Of data that look otherwise, the scores of the run do not hold.",
        "Look at the most telling examples; label some of them and train on them too.",
    ),
    "unknown_class": Advice(
        "Classes that the run does not know",
        "They are taken for one of its classes.",
        "Train a new run with examples of them.",
    ),
    "confidence": Advice(
        "How sure the model is",
        "A model that is less sure than on its own test split sees things it was not taught.",
        "Look at the examples it is least sure of; label some and score with 'kft evaluate'.",
    ),
    "accuracy": Advice(
        "How often the model is right",
        "What it scores here is what can be expected of such data.",
        "Train on such data too if that is not enough.",
    ),
    "no_features": Advice(
        "Checks that were left out",
        "Suspected labels, transfer and drift are not known.",
        "See the reason; 'kft weights ls' tells what is here.",
    ),
}
