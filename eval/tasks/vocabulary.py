"""Fixed word lists: short common words to count letters in, and places for needles.

Few on purpose: a nano model has to learn how each word is spelt before it can count in it.
"""

_WORDS = """
    apple arena banana bee berry book bottle bread bubble butter cabbage candle carrot cheese cherry circle coffee
    cotton deer desert dinner door eagle egg engine feather ferry field finger flower forest garden glass grass green
    hammer happy hello honey hotel house island jelly kettle kitten ladder lemon letter little llama mammal meadow
    mirror moon mountain needle noon onion orange paper pebble pepper pizza planet poppy potato puppy rabbit radio
    river roof rubber sea seed sheep silver sister sleep spoon street summer sweet tea teeth tennis three tree tunnel
    valley village violin water weather wheel willow window winter wood yellow zebra
"""
COUNTING_WORDS: tuple[str, ...] = tuple(_WORDS.split())

_PLACES = """
    Accra Amman Athens Austin Baku Bergen Berlin Bern Bogota Boston Bremen Cairo Chennai Dakar Dallas Delhi Denver
    Doha Dublin Geneva Genoa Hanoi Havana Helsinki Houston Jaipur Kabul Kiev Kyoto Lagos Lima Lisbon London Lyon Madrid
    Malmo Manila Miami Milan Minsk Monaco Moscow Mumbai Munich Nairobi Naples Nice Osaka Oslo Ottawa Paris Prague Quito
    Riga Rome Seoul Sofia Sydney Tampa Tokyo Toronto Tunis Turin Venice Vienna Warsaw Zagreb Zurich
"""
PLACES: tuple[str, ...] = tuple(_PLACES.split())
