export {fetchStatus, sendCommand} from './client.ts';
export {renderStatus} from './render.ts';
export type {GateReport, StatusReport} from './report.ts';
export type {Command} from './routes.ts';
export {type Scrape, type ScrapeRequest, type ScrapeSource, type ScrapeTarget, scrapeOver} from './scrape.ts';
export {type StatusDeps, type StatusServer, startStatusServer} from './server.ts';
