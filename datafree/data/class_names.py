"""What the classes of the named data sets are called, in the order of their indices (Krizhevsky 2009 for CIFAR)."""

DIGITS = tuple("0123456789")
DIGITS100 = tuple(f"{left}{right}" for left in range(10) for right in range(10))

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
CIFAR100 = tuple(_CIFAR100.split())

NAMES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("digits", "mnist", "svhn"), DIGITS),
    "digits100": DIGITS100,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
}
