"""API keys: made, looked at and revoked. A key is shown on the page that answers its making, and nowhere else."""

import json
import shlex
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.widgets import UnfoldAdminTextareaWidget

from events import keys
from events.admin.columns import moment
from events.models import ApiKey


class ApiKeyForm(forms.ModelForm):  # type: ignore[type-arg]  # not subscriptable at run time
    """What a new key is for. Later nothing of it can be changed: a process may know a key for some seconds."""

    beginnings = forms.CharField(
        label="Topics",
        required=False,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 4, "spellcheck": "false"}),
        help_text="The beginnings of the topics it opens, one a line, such as orders. or users. Empty is every topic.",
    )

    class Meta:
        model = ApiKey
        fields = ("name", "may_publish", "may_read", "may_erase")

    def clean_beginnings(self) -> list[str]:
        lines = (line.strip() for line in self.cleaned_data["beginnings"].splitlines())
        return [line for line in lines if line]

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean()
        if cleaned is not None and not any(cleaned.get(f"may_{scope}") for scope in ("publish", "read", "erase")):
            raise forms.ValidationError("A key that may neither publish, read nor erase opens nothing.")
        return cleaned


@admin.register(ApiKey)
class ApiKeyAdmin(ModelAdmin):
    form = ApiKeyForm
    fields = ("name", "may_publish", "may_read", "may_erase", "beginnings")
    list_display = ("prefix", "name_", "scopes_", "topics_", "created", "last_used", "state")
    ordering = ("-id",)
    sortable_by = ()
    list_fullwidth = True
    actions = ("revoke",)
    change_list_template = "admin/events/api_keys.html"

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        """Whether this user may revoke keys."""
        return request.user.has_perm("events.change_apikey")

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.fields if obj is None else self.list_display

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return () if obj is None else self.list_display

    @admin.display(description="Name")
    def name_(self, key: ApiKey) -> str:
        return key.name

    @admin.display(description="May")
    def scopes_(self, key: ApiKey) -> str:
        return " and ".join(key.scopes)

    @admin.display(description="Topics")
    def topics_(self, key: ApiKey) -> SafeString | str:
        return format_html('<span class="key">{}</span>', ", ".join(key.topics)) if key.topics else "all"

    @admin.display(description="Made")
    def created(self, key: ApiKey) -> SafeString:
        return moment(key.created_at)

    @admin.display(description="Last used, to about 5 minutes")
    def last_used(self, key: ApiKey) -> SafeString:
        return moment(key.last_used_at)

    @admin.display(description="State")
    def state(self, key: ApiKey) -> SafeString:
        if key.revoked_at:
            return format_html('<span class="status status-discarded">revoked</span> {}', moment(key.revoked_at))
        return SafeString('<span class="status status-processed">open</span>')

    @admin.action(description="Revoke", permissions=["revoke"])
    def revoke(self, request: HttpRequest, chosen: QuerySet[ApiKey]) -> None:
        revoked = keys.revoke(list(chosen.values_list("prefix", flat=True)))
        if revoked:
            LogEntry.objects.log_actions(
                int(request.user.pk or 0), ApiKey.objects.filter(prefix__in=revoked), CHANGE, change_message="Revoked."
            )
            messages.success(
                request,
                f"{', '.join(revoked)}: revoked. Within {keys.KNOWN_SECONDS:.0f} seconds nothing is open to it.",
            )

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        row, key = keys.create(
            obj.name,
            may_publish=obj.may_publish,
            may_read=obj.may_read,
            may_erase=obj.may_erase,
            topics=form.cleaned_data["beginnings"],
        )
        obj.__dict__.update(row.__dict__)
        # For response_add(), which answers this request.
        obj.shown_once = key  # type: ignore[attr-defined]

    def response_add(self, request: HttpRequest, obj: Any, post_url_continue: Any = None) -> HttpResponse:
        # Not as a message: those wait in a cookie or a session until they are shown.
        return TemplateResponse(
            request,
            "admin/events/api_key.html",
            {
                **self.admin_site.each_context(request),
                "title": "API key",
                "opts": self.opts,
                "row": obj,
                "key": obj.shown_once,
                "curl": example(request, obj, obj.shown_once),
            },
        )


def example(request: HttpRequest, row: ApiKey, key: str) -> str:
    """A command that uses a new key at the address under which the admin was opened.

    Returns:
        curl, for a POSIX shell: it publishes an event where the key may publish, and reads one where it may read. For a
        key that may only erase it names no event, so that nobody erases one by trying.
    """
    lines = [f"-H 'Authorization: Api-Key {key}'"]
    if row.may_publish:
        event = {"topic": f"{row.topics[0] if row.topics else ''}test", "event_id": "test-1", "source": "curl"}
        lines += ["-H 'Content-Type: application/json'", f"-d {shlex.quote(json.dumps(event, ensure_ascii=False))}"]
    elif not row.may_read:
        lines += ["-X DELETE"]
    path = "/publish" if row.may_publish else "/events?limit=1" if row.may_read else "/events/"
    address = request.build_absolute_uri(path)
    if path == "/events/":
        address += "<id>"
    return " \\\n    ".join([f"curl {shlex.quote(address)}", *lines])
