"""The demo's tokenizer: a byte-level BPE of a few hundred tokens.

Any UTF-8 text round-trips, since every byte is a token. Digits stand alone. The merges are learned
from the voices that are made of words; the others stay bytes, so a Chinese character takes three
tokens, and a stream of them shows whether a server detokenizes split characters properly.
"""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from examples.demo.voices import NUMBERS, PROMPT, VOICES, english, is_held_out

VOCAB_SIZE = 512
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
WORD_VOICES = ("french", "german", "spanish", "shouted", "pirate")

# A system message is rendered as the tag that picks a voice of the base model: "[french] 407 =".
# The model was never taught tools; with them the template shows how servers handle their calls.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    '{% if tools %}{{ \'Call <tool_call>{"name":…,"arguments":…}</tool_call> of \' }}'
    "{% for tool in tools %}{{ tool.function | tojson + '\\n' }}{% endfor %}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '[' + message['content'] | trim + '] ' }}"
    "{% elif message['role'] == 'user' %}{{ message['content'] | trim + ' =' }}"
    "{% elif message['role'] == 'tool' %}{{ '(' + message['content'] | trim + ') =' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] | trim }}"
    "{% for call in message.tool_calls or [] %}"
    "{{ '<tool_call>' + call.function | tojson + '</tool_call>' }}"
    "{% endfor %}{{ eos_token }}"
    "{% else %}{{ raise_exception('role must be system, user, assistant or tool') }}"
    "{% endif %}{% endfor %}"
)


def tag(voice: str) -> str:
    """The prefix that asks the base model for a voice without any adapter."""
    return f"[{voice}] "


def build_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_lines(), trainer)
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
        chat_template=CHAT_TEMPLATE,
    )


def _lines() -> list[str]:
    lines = [tag(voice) for voice in VOICES]
    for n in NUMBERS:
        if not is_held_out(n):
            prompt = PROMPT.format(n=n)
            lines.append(f"{prompt} {english(n)}")
            lines.extend(f"{prompt} {VOICES[voice](n)}" for voice in WORD_VOICES)
    return lines
