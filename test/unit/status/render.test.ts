import {readFile} from 'node:fs/promises';
import test from 'ava';
import {renderDuration, renderStatus} from '../../../src/status/render.ts';
import type {StatusReport} from '../../../src/status/report.ts';

const report: StatusReport = {
	version: '0.1.0',
	pid: 4711,
	at: '2026-03-01T12:00:00.000Z',
	uptimeS: 7425,
	ready: false,
	stopping: false,
	gates: [
		{name: 'identity', open: true, reason: 'certificate valid', since: '2026-03-01T09:56:20.000Z'},
		{
			name: 'controlPlane',
			open: false,
			reason: 'token expired at 2026-02-28T00:00:00Z',
			hint: 'istioctl x workload entry configure, then copy istio-token to /etc/onramp/bundle',
			since: '2026-03-01T11:59:55.000Z',
		},
	],
	parts: {
		identity: {
			spiffeId: 'spiffe://cluster.local/ns/vm-ns/sa/vm',
			expiresAt: '2026-03-02T09:56:20.000Z',
			rotatedAt: '2026-03-01T09:56:20.000Z',
			canRenewWithoutToken: true,
			lastError: null,
			roots: ['a', 'b'],
		},
		controlPlane: {
			endpoint: 'istiod.istio-system.svc:15012',
			state: 'reconnecting',
			attempts: 3,
			reason: '\x1b[31mred\nline',
		},
		relay: {
			removed: [
				{category: 'envoy.filters.http', name: 'istio.stats', type: 'stats.PluginConfig', lost: 'istio_requests_total'},
				{category: 'alpn', name: 'istio-peer-exchange', type: '', lost: 'workload metadata of peers over plain TCP'},
			],
			resources: {CDS: 12, LDS: 9},
		},
		proxy: {state: 'running', pid: 99, crashes: []},
		registration: null,
	},
};

test('status text › reads as the golden file', async t => {
	const golden = new URL('./status.golden.txt', import.meta.url);
	t.is(renderStatus(report), await readFile(golden, 'utf8'));
});

test('status text › says READY when all is well and shows no hint of an open gate', t => {
	const gate = {name: 'identity', open: true, reason: 'ok', hint: 'nothing', since: report.at};
	const text = renderStatus({...report, ready: true, gates: [gate], parts: {}});
	t.is(text, 'onramp 0.1.0 (pid 4711), up 2 h 3 min: READY\n\n[ok] identity  ok (for 0 s)\n');
});

test('status text › lets nothing through that moves a terminal, neither in values nor in names', t => {
	const text = renderStatus({
		...report,
		parts: {x: {a: '\x1b]0;title\x07', b: [{c: '\r\n'}], d: '\x9b2J', '\x1b[2J': 1}},
	});
	t.regex(text, /^[\x20-\x7e\n]*$/);
});

test('status text › shows what nests too deep by leaving it out, not by failing', t => {
	let deep: unknown = 'end';
	for (let i = 0; i < 50; i++) deep = {deep};
	t.notThrows(() => renderStatus({...report, parts: {deep}}));
});

for (const [ms, text] of [
	[0, '0 s'],
	[-5, '0 s'],
	[59_999, '59 s'],
	[60_000, '1 min'],
	[3_605_000, '1 h'],
	[90_061_000, '1 d 1 h'],
] as const) {
	test(`duration › ${ms} ms is "${text}"`, t => {
		t.is(renderDuration(ms), text);
	});
}
