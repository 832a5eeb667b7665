"""Score models on sets whose truth is known: does every garment keep its look, its texture and its place?

python -m infer.evaluate --model mini --split heldout --count 100 --json outputs/evaluation.json

heldout and train are sets of Wardrobe (heldout: textures, colour pairs and poses that no training picture shows);
alike are held-out ones whose garments binding alone tells apart (one pattern, colours that the phrases name, every set
once more with the colours of top and bottom exchanged); drawn are flat-coloured t-shirts and trousers in another hand.
Columns of the table: the true pictures and their reconstruction by the VAE (what no model can surpass), the model, the
same with its binding switched off if it has any (--no-without-binding leaves that out), other models. Every figure is a
mean with its 95 % bootstrap interval over sets; fcjax/metrics says how each is measured. No pretrained network takes
part unless it is named. A killed run goes on where it stopped if it was to write any file (or has --work), and many
processes can share its drawing (--shard).

The swap test exchanges the phrases of two equally shaped swatches of fabric, in sets whose captions do not name their
colours: the share of sets in which both places show the right fabric before and the other one after.

python -m infer.evaluate --model FOLDER --data OUT --task tryon --pairing unpaired --protocol catvton-512

The people of a prepared data set (OUT of train.prepare), drawn anew from their pose (compose) or dressed (tryon) in
their own garments (paired, their picture is the truth) or in another's (unpaired, no truth). By --protocol the pictures
are also scored as any method's; FID and KID then compare with the set's own pictures, at the model's size.

python -m infer.evaluate --model FOLDER --sets outputs/table1/sets.jsonl

The sets of infer.table1: garments of several people on another's body, scored by binding accuracy and palette distance.
Any other system's pictures of them get the same figures by --predictions DIR, a picture of every set by its number.

python -m infer.evaluate --predictions DIR --truth DIR --protocol catvton-512 --json outputs/table.json

Any method's folder of pictures against the true ones, by the scripts that published numbers come from: SSIM, LPIPS,
FID and KID by catvton-512, ladi-512 or promptdresser-1024, SSIM and LPIPS by hrviton. Every file must fit and be
readable, or nothing is scored (--subset takes what fits, and says so). A killed run goes on as above. More methods'
folders are scored alike by --also DIR.

python -m infer.evaluate --model FOLDER --also OTHER --html page.html --blind

python -m infer.evaluate --votes votes-*.json --key page.key.json

With --html an evaluation of models becomes a page of its own, with --blind one on which people vote without knowing
whose pictures they see; the last command counts their votes.
"""

from fcjax.cli import run
from infer.blind import count_votes
from infer.compose import prepare_output
from infer.evaluation_request import Request
from infer.figures import prepare_file, prepare_pictures
from infer.folder_evaluation import score_predictions
from infer.pages import key_file


def main(request: Request) -> None:
    """Score, print the table, write what was asked for."""
    request.check()
    if request.key is not None:
        print(count_votes(request.votes, request.key))
        return
    for path in (request.json, request.folders.csv):
        if path is not None:
            prepare_file(path, request.overwrite)
    if request.html is not None:
        prepare_file(request.html)
        if request.blind:
            prepare_file(key_file(request.html), request.overwrite)
    for path in (request.sheet, request.worst, request.swap_sheet):
        if path is not None:
            prepare_output(path)
    if request.pictures is not None:
        prepare_pictures(request.pictures, request.overwrite)
    if request.scores_folders:
        score_predictions(request)
    else:
        # Here, because readers of records take seconds to import.
        from infer.set_evaluation import score_sets

        score_sets(request)


if __name__ == "__main__":
    run(main)
