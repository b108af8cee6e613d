import {reasonOf} from '../errors.ts';
import type {Metrics} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import {acceptFor, isOpenMetrics, textContentType} from './accept.ts';
import type {Scrape, ScrapeSource} from './scrape.ts';

/** What a scraper sent, as far as it matters here. */
export interface ScraperRequest {
	readonly accept: string | undefined;
	readonly userAgent: string | undefined;
	/** X-Prometheus-Scrape-Timeout-Seconds. */
	readonly timeoutSeconds: string | undefined;
	readonly query: string;
}

export interface MetricsPage {
	readonly contentType: string;
	readonly chunks: readonly Buffer[];
}

export interface MergeDeps {
	readonly metrics: Metrics;
	/** The agent's own, beside the registry. */
	readonly renderProcess: () => Promise<string>;
	readonly envoy: () => ScrapeSource | undefined;
	readonly applications: readonly ScrapeSource[];
	readonly log: Logger;
}

/** Prometheus' own default. */
const defaultTimeoutSeconds = 10;
const longestTimeoutSeconds = 300;

/** Of the scraper's time: what is left lets us answer with what came, before it gives up on everything. */
const shareOfTimeout = 0.9;

/** @returns milliseconds for the sources to answer in */
export function deadlineMs(timeoutSeconds: string | undefined): number {
	const seconds = Number(timeoutSeconds);
	const valid = timeoutSeconds !== undefined && seconds > 0 && seconds <= longestTimeoutSeconds;
	return (valid ? seconds : defaultTimeoutSeconds) * 1000 * shareOfTimeout;
}

/**
 * The agent's metrics, then Envoy's, then the application's, as one page. A source that does not answer is left out
 * and counted: a page with less in it is better than none, also for the alert on what is missing.
 */
export function createMergedMetrics({
	metrics,
	renderProcess,
	envoy,
	applications,
	log,
}: MergeDeps): (request: ScraperRequest) => Promise<MetricsPage> {
	const countScrape = metrics.counter('scrapes_total', 'Scrapes of the merged metrics.');
	const countFailure = metrics.counter(
		'scrape_failures_total',
		'Sources of merged metrics that did not answer, by type.',
	);
	const attempt = async (
		type: 'envoy' | 'application',
		source: ScrapeSource | undefined,
		request: ScraperRequest,
		signal: AbortSignal,
	) => {
		if (!source) return undefined;
		try {
			return await source({headers: headersFor(type, request), query: type === 'envoy' ? request.query : '', signal});
		} catch (error) {
			countFailure({type});
			log.debug({type, reason: reasonOf(error)}, 'source of metrics did not answer');
			return undefined;
		}
	};
	return async request => {
		countScrape();
		const signal = AbortSignal.timeout(deadlineMs(request.timeoutSeconds));
		const [fromEnvoy, ...fromApps] = await Promise.all([
			attempt('envoy', envoy(), request, signal),
			...applications.map(source => attempt('application', source, request, signal)),
		]);
		const own = Buffer.from(metrics.render() + (await renderProcess()));
		return mergePages(own, fromEnvoy, fromApps);
	};
}

/** @param apps - one for each application asked; undefined where it did not answer */
export function mergePages(own: Buffer, envoy: Scrape | undefined, apps: readonly (Scrape | undefined)[]): MetricsPage {
	const answered = apps.filter(app => app !== undefined);
	const isOpen = answered.length > 0 && answered.every(app => isOpenMetrics(app.contentType));
	const before = [own, ...(envoy ? [envoy.body] : [])];
	// OpenMetrics knows no empty lines, and Envoy writes one after each family.
	const chunks = (isOpen ? before.map(withoutEmptyLines) : before).map(withNewline);
	for (const app of answered) chunks.push(withNewline(withoutEnd(app.body)));
	if (isOpen) chunks.push(Buffer.from('# EOF\n'));
	return {contentType: isOpen ? answered[0]!.contentType : textContentType, chunks};
}

function headersFor(
	type: 'envoy' | 'application',
	{accept, userAgent, timeoutSeconds}: ScraperRequest,
): Record<string, string> {
	const headers: Record<string, string> = {accept: acceptFor(type, accept)};
	if (userAgent !== undefined) headers['user-agent'] = userAgent;
	if (timeoutSeconds !== undefined) headers['x-prometheus-scrape-timeout-seconds'] = timeoutSeconds;
	return headers;
}

/** Without the end mark, which may only stand at the end of the whole page. */
function withoutEnd(body: Buffer): Buffer {
	const end = body.lastIndexOf('# EOF');
	const isMark =
		end >= 0 && (end === 0 || body[end - 1] === newline) && body.toString('latin1', end).trim() === '# EOF';
	return isMark ? body.subarray(0, end) : body;
}

function withoutEmptyLines(body: Buffer): Buffer {
	return Buffer.from(
		body
			.toString('latin1')
			.replaceAll(/\n(?:[ \t\r]*\n)+/g, '\n')
			.replace(/^\n+/, ''),
		'latin1',
	);
}

function withNewline(body: Buffer): Buffer {
	return body.length === 0 || body[body.length - 1] === newline ? body : Buffer.concat([body, Buffer.from('\n')]);
}

const newline = 0x0a;
