import {createServer, type IncomingHttpHeaders, type RequestListener} from 'node:http';
import type {AddressInfo} from 'node:net';
import test, {type ExecutionContext} from 'ava';
import {Metrics} from '../../../src/lifecycle/index.ts';
import {silentLogger} from '../../../src/log.ts';
import {acceptFor} from '../../../src/status/accept.ts';
import {
	createMergedMetrics,
	deadlineMs,
	type MetricsPage,
	type ScraperRequest,
} from '../../../src/status/merge-metrics.ts';
import {parseListeners} from '../../../src/status/port-owner.ts';
import {type Scrape, type ScrapeSource, scrapeOver} from '../../../src/status/scrape.ts';

const text = 'text/plain;version=0.0.4';
const open1 = 'application/openmetrics-text;version=1.0.0';

const request: ScraperRequest = {accept: undefined, userAgent: undefined, timeoutSeconds: undefined, query: ''};

function source(body: string, contentType = text): ScrapeSource {
	return async (): Promise<Scrape> => ({body: Buffer.from(body), contentType});
}

const failing: ScrapeSource = async () => {
	throw new Error('away');
};

function merge(
	envoy: ScrapeSource | undefined,
	applications: ScrapeSource[],
	scraper = request,
	metrics = new Metrics(),
): Promise<MetricsPage> {
	metrics.gauge('up', 'Own.')(1);
	const run = createMergedMetrics({
		metrics,
		renderProcess: async () => '',
		envoy: () => envoy,
		applications,
		log: silentLogger,
	});
	return run(scraper);
}

/** Without the agent's own counters, which stand first. */
function foreign({chunks}: MetricsPage): string {
	return Buffer.concat(chunks.slice(1)).toString();
}

async function serve(t: ExecutionContext, listener: RequestListener): Promise<number> {
	const server = createServer(listener);
	await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve));
	t.teardown(() => {
		server.closeAllConnections();
		server.close();
	});
	return (server.address() as AddressInfo).port;
}

const acceptCases: [accept: string | undefined, envoy: string, application: string][] = [
	[undefined, text, text],
	['', text, text],
	['nonsense', text, text],
	['application/json', text, text],
	['*/*', `${text};q=0.1`, `${text};q=0.1`],
	['application/*', text, 'application/openmetrics-text;version=0.0.1;q=0.1'],
	['text/plain;q=0', text, text],
	[
		'application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2',
		`${text};q=0.2,${text};q=0.1`,
		`${open1};q=0.4,application/openmetrics-text;version=0.0.1;q=0.3,${text};q=0.2,${text};q=0.1`,
	],
	['text/plain;q=0.1,text/*;q=0.9', 'text/*;q=0.2,text/plain;q=0.1', 'text/*;q=0.2,text/plain;q=0.1'],
	['application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily', text, text],
];

for (const [accept, envoy, application] of acceptCases) {
	test(`accept › ${accept === undefined ? 'none' : `"${accept.slice(0, 60)}"`} becomes what can be put together`, t => {
		t.is(acceptFor('envoy', accept), envoy);
		t.is(acceptFor('application', accept), application);
	});
}

test('accept › never offers more choices than one digit can weigh', t => {
	t.is(acceptFor('envoy', Array(50).fill('text/plain').join(',')).split(',').length, 9);
});

test('metrics › have help texts that end alike, whoever wrote them', t => {
	const metrics = new Metrics();
	metrics.gauge('a', 'With a full stop.')(1);
	metrics.gauge('b', 'Without one')(1);
	t.deepEqual(metrics.render().match(/^# HELP .*$/gm), [
		'# HELP onramp_a With a full stop.',
		'# HELP onramp_b Without one.',
	]);
});

test('metrics › come in the order agent, Envoy, application', async t => {
	const page = await merge(source('envoy_a 1\n'), [source('app_b 2')]);
	const body = Buffer.concat(page.chunks).toString();
	t.regex(body, /onramp_up 1\n(?:.*\n)*envoy_a 1\napp_b 2\n$/);
	t.is(page.contentType, `${text};charset=utf-8`);
});

test('metrics › are answered with what is there when a source fails, and the failure is counted', async t => {
	const metrics = new Metrics();
	t.is(foreign(await merge(failing, [source('app 1\n'), failing], request, metrics)), 'app 1\n');
	t.regex(metrics.render(), /onramp_scrape_failures_total\{type="envoy"\} 1\n/);
	t.regex(metrics.render(), /onramp_scrape_failures_total\{type="application"\} 1\n/);
	t.regex(metrics.render(), /onramp_scrapes_total 1\n/);
});

test('metrics › do without Envoy before there is one', async t => {
	t.is(foreign(await merge(undefined, [])), '');
});

test('metrics › are OpenMetrics when the application is, with one end mark and no empty line', async t => {
	const page = await merge(source('a 1\n\nb 1\n\n'), [source('app_total 1\n# EOF\n', `${open1}; charset=utf-8`)]);
	t.is(foreign(page), 'a 1\nb 1\napp_total 1\n# EOF\n');
	t.is(page.contentType, `${open1}; charset=utf-8`);
});

test('metrics › of several applications are OpenMetrics only if all of them are', async t => {
	const open = source('a_total 1\n# EOF\n', open1);
	const mixed = await merge(undefined, [open, source('b 1\n')]);
	t.is(foreign(mixed), 'a_total 1\nb 1\n');
	t.is(mixed.contentType, `${text};charset=utf-8`);
	t.is(foreign(await merge(undefined, [open, open])), 'a_total 1\na_total 1\n# EOF\n');
	t.is(foreign(await merge(undefined, [open, failing])), 'a_total 1\n# EOF\n');
});

test('metrics › keep an end mark that is only part of a comment', async t => {
	t.is(foreign(await merge(undefined, [source('# EOF is the end\na 1\n')])), '# EOF is the end\na 1\n');
});

test('metrics › pass on the three headers and the query to Envoy only, and nothing else', async t => {
	const seen: {url: string | undefined; headers: IncomingHttpHeaders}[] = [];
	const port = await serve(t, ({url, headers}, response) => {
		seen.push({url, headers});
		response.end('x 1\n');
	});
	const target = scrapeOver({port, path: 'stats/prometheus'}, 1000);
	const scraper = {accept: open1, userAgent: 'Prometheus/3', timeoutSeconds: '5', query: '?usedonly'};
	await merge(target, [], scraper);
	await merge(undefined, [target], scraper);
	const common = {
		'user-agent': 'Prometheus/3',
		'x-prometheus-scrape-timeout-seconds': '5',
		connection: 'close',
		host: `127.0.0.1:${port}`,
	};
	t.deepEqual(seen, [
		{url: '/stats/prometheus?usedonly', headers: {...common, accept: text}},
		{url: '/stats/prometheus', headers: {...common, accept: `${open1};q=0.1`}},
	]);
});

test('metrics › do not wait longer than the scraper does for a source that hangs', async t => {
	const port = await serve(t, () => {});
	const started = performance.now();
	const page = await merge(scrapeOver({port, path: '/'}, 1000), [source('app 1\n')], {
		...request,
		timeoutSeconds: '0.2',
	});
	t.is(foreign(page), 'app 1\n');
	t.true(performance.now() - started < 5000);
});

test('metrics › leave out a source that answers too much, too little or not with 200', async t => {
	const port = await serve(t, ({url}, response) => {
		if (url === '/long') response.end('x'.repeat(2000));
		else if (url === '/cut') {
			response.writeHead(200, {'content-length': '100'});
			response.write('x 1\n', () => response.destroy());
		} else {
			response.statusCode = 404;
			response.end('no');
		}
	});
	const metrics = new Metrics();
	const targets = ['/long', '/cut', '/none'].map(path => scrapeOver({port, path}, 1000));
	t.is(foreign(await merge(undefined, targets, request, metrics)), '');
	t.regex(metrics.render(), /onramp_scrape_failures_total\{type="application"\} 3\n/);
});

test('deadline › is nine tenths of what the scraper says, or of ten seconds', t => {
	t.is(deadlineMs('5'), 4500);
	for (const odd of [undefined, '', 'soon', '-1', '0', 'Infinity', '1e9']) t.is(deadlineMs(odd), 9000);
});

test('port owner › finds the listening sockets of a port and no others', t => {
	const table = [
		'  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode',
		'   0: 00000000:3AAC 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1001 1 0 100 0 0 10 0',
		'   1: 0100007F:3AAC 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 1002 1 0 100 0 0 10 0',
		'   2: 00000000:13AA 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1003 1 0 100 0 0 10 0',
	].join('\n');
	t.deepEqual(parseListeners(table, 15020), ['1001']);
	t.deepEqual(parseListeners('', 15020), []);
});
