"""From a prompt to text.

`loading` makes a model that answers: session, passes and tokenizer. A `request` holds the state of
one prompt: its token ids, sampler, text and limits. The `engine` runs the requests of many in the
slots of one session.
"""
